from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimscope import config
from claimscope.config import Config, ControllerConfig, build, from_environment, from_file, from_flags
from claimscope.yamlfile import ConfigError

ROOT = Path(__file__).parent.parent


def from_text(text: str) -> Config:
    return build(from_file(text, "claimscope.yaml"))


def test_nothing_written_gives_the_defaults() -> None:
    assert build(from_file("", "x.yaml"), from_environment({}), from_flags({})) == Config()
    assert Config().listen == ("", 19400)
    assert Config().kubelet_socket == "/var/lib/kubelet/pod-resources/kubelet.sock"


def test_a_flag_wins_over_the_environment_and_that_over_the_file() -> None:
    built = build(
        from_file("sampling_hz: 2\nhang_seconds: 20\nnode_name: from-file\n", "claimscope.yaml"),
        from_environment({"CLAIMSCOPE_SAMPLING_HZ": "3", "CLAIMSCOPE_NODE_NAME": "from-environment"}),
        from_flags({"sampling_hz": "4", "node_name": None}),
    )
    assert (built.sampling_hz, built.hang_seconds, built.node_name) == (4.0, 20.0, "from-environment")


def test_a_list_is_written_with_commas_in_flags_and_as_a_list_in_the_file() -> None:
    assert build(from_flags({"collectors": "nvlink-per-link, processes"})).collectors == (
        "nvlink-per-link",
        "processes",
    )
    assert from_text("collectors: [processes]\n").collectors == ("processes",)


def test_a_bare_off_in_the_file_is_the_word_off() -> None:
    assert from_text("attribution: off\napi_server: off\n") == Config(attribution="off", api_server="off")


def test_variables_that_kubernetes_makes_for_a_service_are_left_alone() -> None:
    environment = {"CLAIMSCOPE_PORT": "tcp://10.0.0.1:19400", "CLAIMSCOPE_SERVICE_HOST": "10.0.0.1"}
    assert build(from_environment(environment)) == Config()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node_name: a\nsamplin_hz: 5\n", "claimscope.yaml:2:1: unknown key `samplin_hz`: did you mean `sampling_hz`?"),
        ("sampling_hz: fast\n", "claimscope.yaml:1:14: `fast` is not a number from 1 to 20"),
        ("sampling_hz: '5'\n", "claimscope.yaml:1:14: `5` is not a number from 1 to 20"),
        ("sampling_hz: .nan\n", "claimscope.yaml:1:14: `nan` is not a number from 1 to 20"),
        ("hang_seconds: 0\n", "claimscope.yaml:1:15: `0` is not a number from 1 to 600"),
        ("driver_time_budget_ratio: 0\n", "claimscope.yaml:1:27: `0` is not a number from just above 0 to 1"),
        ("simulate: h100x9\n", "claimscope.yaml:1:11: unknown value `h100x9`: did you mean `h100x8`?"),
        (
            "log_level: loud\n",
            "claimscope.yaml:1:12: unknown value `loud`: known are `debug`, `info`, `warning`, `error`",
        ),
        (
            "collectors: [nvlink]\n",
            "claimscope.yaml:1:13: unknown value `nvlink`: did you mean `nvlink-per-link`?",
        ),
        ("collectors: {a: 1}\n", "claimscope.yaml:1:13: unknown value `{'a': 1}`: known are `nvlink-per-link`, "
                                 "`processes`"),
        ("node_name: a\nnode_name: b\n", "claimscope.yaml:2:1: key `node_name` stands here a second time: remove one"),
        ("node_name: [a\n", "claimscope.yaml:2:1: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("- a\n", "claimscope.yaml:1:1: expected `key: value` lines"),
        ("node_name: 7\n", "claimscope.yaml:1:12: `7`: Expected `str`, got `int`"),
        ("web_listen_address: 'localhost'\n", "claimscope.yaml:1:21: `localhost` is not host:port, [v6 address]:port "
                                              "or :port"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_names_its_place_and_the_cure(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_text(text)
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            {"sampling_hz": "50"},
            "--sampling-hz: 50 samples a second is above 20: for up to 100 for a while use `claimscope nvml burst`",
        ),
        (
            {"web_listen_address": "127.0.0.1:70000"},
            "--web-listen-address: port `70000` of `127.0.0.1:70000` is not a number from 0 to 65535",
        ),
        ({"scenario": "a.yaml"}, "--scenario: a scenario needs a simulated node: add --simulate PROFILE"),
        (
            {"simulate": "h100x8", "nvml_library": "/x.so"},
            "--nvml-library: --simulate h100x8 brings its own library: leave one of them out",
        ),
        ({"simulate": ""}, None),
    ],
)
def test_a_mistake_on_the_command_line(flags: dict[str, str | None], expected: str | None) -> None:
    if expected is None:
        assert build(from_flags(flags)) == Config()
        return
    with pytest.raises(ConfigError) as raised:
        build(from_flags(flags))
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [(":0", ("", 0)), ("127.0.0.1:1", ("127.0.0.1", 1)), ("[::1]:19400", ("::1", 19400)), ("a.b:2", ("a.b", 2))],
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert config.split_address(address) == expected


def complaint(settings: Callable[[], Iterator[config.Setting]]) -> str | None:
    """What is wrong with the settings; None where nothing is."""
    try:
        build(settings())
    except ConfigError as error:
        return str(error)
    return None


@given(st.text(max_size=80))
def test_any_text_is_a_configuration_or_one_line_of_complaint(text: str) -> None:
    assert (complaint(lambda: from_file(text, "x.yaml")) or "x.yaml").startswith("x.yaml")


@given(st.sampled_from(config.fields()), st.text(max_size=20))
def test_any_value_of_any_flag_is_taken_or_named(field: config.Field, value: str) -> None:
    flags = {"simulate": "h100x8" if field.key == "scenario" else None, field.key: value}
    assert (complaint(lambda: from_flags(flags)) or "--").startswith("--")


def test_the_controller_reads_its_own_settings() -> None:
    built = build(
        from_file("lease_seconds: 30\nleader_election: off\n", "c.yaml", ControllerConfig),
        from_environment({"CLAIMSCOPE_LEASE_SECONDS": "20", "CLAIMSCOPE_SAMPLING_HZ": "no concern"}, ControllerConfig),
        from_flags({"claim_series": "essential"}, ControllerConfig),
        of=ControllerConfig,
    )

    assert built == ControllerConfig(lease_seconds=20, leader_election="off", claim_series="essential")
    assert built.listen == ("", 19401)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"lease_seconds": "1"}, "--lease-seconds: `1` is not a number from 3 to 600"),
        ({"lease_seconds": "4.5"}, "--lease-seconds: `4.5` is not a number from 3 to 600"),
        ({"leader_election": "of"}, "--leader-election: unknown value `of`: did you mean `off`?"),
        (
            {"api_server_url": "https://10.0.0.1:6443"},
            "--api-server-url: `10.0.0.1` is another machine, and this way carries no credentials: use --kubeconfig "
            "for it",
        ),
        ({"api_server_url": "127.0.0.1:8001"}, "--api-server-url: `127.0.0.1:8001` is not http://HOST:PORT"),
        ({"api_server_url": "http://[::1"}, "--api-server-url: Invalid IPv6 URL"),
        (
            {"api_server_url": "http://127.0.0.1:8001", "kubeconfig": "/k"},
            "--api-server-url: --kubeconfig /k names an API server as well: leave one of them out",
        ),
    ],
)
def test_a_mistake_on_the_controllers_command_line(flags: dict[str, str | None], expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build(from_flags(flags, ControllerConfig), of=ControllerConfig)
    assert str(raised.value) == expected


def test_an_unknown_key_of_the_controllers_file_names_a_close_one() -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml:1:1: unknown key `lease_nam`: did you mean `lease_name`\?"):
        build(from_file("lease_nam: x\n", "c.yaml", ControllerConfig), of=ControllerConfig)


@pytest.mark.parametrize(
    ("setting", "own_namespace", "expected"),
    [(None, "gpu-system", "gpu-system"), (None, "", ""), ("", "gpu-system", ""), ("other", "gpu-system", "other")],
)
def test_the_heartbeat_goes_to_the_pods_own_namespace_unless_told_otherwise(
    setting: str | None, own_namespace: str, expected: str
) -> None:
    built = build(from_flags({"lease_namespace": setting}))

    assert config.complete(built, "node-a", own_namespace) == Config(node_name="node-a", lease_namespace=expected)


def test_the_controller_completes_its_name_and_namespace() -> None:
    empty, full = ControllerConfig(), ControllerConfig(identity="a", namespace="b")

    assert config.complete_controller(empty, "pod-1", "") == ControllerConfig(identity="pod-1", namespace="claimscope")
    assert config.complete_controller(empty, "pod-1", "ns").namespace == "ns"
    assert config.complete_controller(full, "pod-1", "ns") == full


def test_the_documentation_is_current() -> None:
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == config.document()
