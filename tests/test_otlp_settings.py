"""How the settings of ours and the standard variables add up."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import OTELResourceDetector
from opentelemetry.util.re import parse_env_headers

from claimscope.export.otlp.settings import OtlpSettings, TlsFiles, read
from claimscope.yamlfile import ConfigError

BASE = "OTEL_EXPORTER_OTLP_"


def settings(endpoint: str | None = None, /, protocol: str | None = None, **environ: str) -> OtlpSettings:
    found = read(environ, endpoint=endpoint, protocol=protocol)
    assert found is not None
    return found


def refused(endpoint: str | None = None, /, protocol: str | None = None, **environ: str) -> str:
    with pytest.raises(ConfigError) as error:
        read(environ, endpoint=endpoint, protocol=protocol)
    return str(error.value)


def test_nothing_is_pushed_where_nothing_says_where_to() -> None:
    assert read({}) is None
    assert read({BASE + "ENDPOINT": "", BASE + "HEADERS": "a=b"}) is None


def test_an_empty_endpoint_wins_over_the_variables() -> None:
    assert read({BASE + "ENDPOINT": "http://collector:4318"}, endpoint="") is None


@pytest.mark.parametrize(
    "environ", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_METRICS_EXPORTER": "none"},
                {"OTEL_METRICS_EXPORTER": "prometheus"}],
)  # fmt: skip
def test_the_standard_ways_to_turn_it_off(environ: dict[str, str]) -> None:
    assert read(environ, endpoint="http://collector:4318") is None


def test_defaults_are_http_gzip_ten_seconds_and_a_minute() -> None:
    assert settings("http://collector:4318") == OtlpSettings(
        endpoint="http://collector:4318/v1/metrics", protocol="http/protobuf", headers=(), timeout_seconds=10.0,
        gzip=True, tls=None, interval_seconds=60.0, service_name=None, resource={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("http://c:4318", "http://c:4318/v1/metrics"),
        ("http://c:4318/", "http://c:4318/v1/metrics"),
        ("http://c:4318/v1/metrics", "http://c:4318/v1/metrics"),
        ("http://prometheus:9090/api/v1/otlp", "http://prometheus:9090/api/v1/otlp/v1/metrics"),
        ("https://[::1]:4318", "https://[::1]:4318/v1/metrics"),
    ],
)
def test_the_path_of_metrics_is_added(given: str, made: str) -> None:
    assert settings(given).endpoint == made
    assert settings(**{BASE + "ENDPOINT": given}).endpoint == made


def test_the_endpoint_for_metrics_is_taken_as_it_is_and_wins() -> None:
    environ = {BASE + "ENDPOINT": "http://a:1", BASE + "METRICS_ENDPOINT": "http://b:2/push?x=1"}

    assert settings(**environ).endpoint == "http://b:2/push?x=1"


@pytest.mark.parametrize(
    ("given", "environ", "target", "encrypted"),
    [
        ("http://c:4317", {}, "c:4317", False),
        ("https://c:4317", {}, "c:4317", True),
        ("https://c", {}, "c:443", True),
        ("http://c", {}, "c:80", False),
        ("c:4317", {}, "c:4317", True),
        ("c:4317", {BASE + "INSECURE": "true"}, "c:4317", False),
        ("[::1]:4317", {BASE + "METRICS_INSECURE": "true", BASE + "INSECURE": "false"}, "[::1]:4317", False),
    ],
)
def test_targets_of_grpc(given: str, environ: dict[str, str], target: str, encrypted: bool) -> None:
    found = settings(given, protocol="grpc", **environ)

    assert (found.endpoint, found.tls is not None) == (target, encrypted)


def test_the_rest_of_the_standard_variables(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("ca.pem", "own.pem", "key.pem")}
    for path in files.values():
        path.write_text("")

    found = settings(
        **{
            BASE + "METRICS_ENDPOINT": "https://c:4317", BASE + "PROTOCOL": "http/protobuf",
            BASE + "METRICS_PROTOCOL": "grpc", BASE + "HEADERS": "Api-Key=a%20b, x=1", BASE + "TIMEOUT": "2500",
            BASE + "COMPRESSION": "none", BASE + "CERTIFICATE": str(files["ca.pem"]),
            BASE + "CLIENT_CERTIFICATE": str(files["own.pem"]), BASE + "CLIENT_KEY": str(files["key.pem"]),
            "OTEL_METRIC_EXPORT_INTERVAL": "15000", "OTEL_SERVICE_NAME": "gpus",
            "OTEL_RESOURCE_ATTRIBUTES": "k8s.cluster.name=east,service.name=other",
        }
    )  # fmt: skip

    assert found == OtlpSettings(
        endpoint="c:4317", protocol="grpc", headers=(("api-key", "a b"), ("x", "1")), timeout_seconds=2.5, gzip=False,
        tls=TlsFiles(authorities=files["ca.pem"], certificate=files["own.pem"], key=files["key.pem"]),
        interval_seconds=15.0, service_name="gpus", resource=found.resource,
    )  # fmt: skip
    assert found.resource["k8s.cluster.name"] == "east"


def test_flags_win_over_variables() -> None:
    environ = {
        BASE + "ENDPOINT": "http://a:1", BASE + "PROTOCOL": "http/protobuf", "OTEL_METRIC_EXPORT_INTERVAL": "1000",
    }

    found = read(environ, endpoint="http://b:2", protocol="grpc", interval_seconds=5.0)

    assert found is not None
    assert (found.endpoint, found.protocol, found.interval_seconds) == ("b:2", "grpc", 5.0)


def test_what_cannot_be_used_is_said_with_its_place() -> None:
    assert refused("collector:4318") == (
        "--otlp-endpoint: `collector:4318` is not http://HOST:PORT, https://HOST:PORT"
    )
    assert refused(**{BASE + "ENDPOINT": "ftp://c"}) == (
        "environment variable OTEL_EXPORTER_OTLP_ENDPOINT: `ftp://c` is not http://HOST:PORT, https://HOST:PORT"
    )
    assert refused("http://c:port").startswith("--otlp-endpoint: not http://HOST:PORT")
    assert refused("http://c:4317/v1/metrics", protocol="grpc") == (
        "--otlp-endpoint: gRPC has no path: leave what follows the port out, or use --otlp-protocol http/protobuf"
    )
    with pytest.raises(ConfigError, match=r"^--otlp-interval-seconds: less than 0\.1 s between two pushes$"):
        read({}, endpoint="http://c:4318", interval_seconds=0.05)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (BASE + "PROTOCOL", "http/json", "unknown value 'http/json'; known are http/protobuf, grpc"),
        (BASE + "COMPRESSION", "zstd", "unknown value 'zstd'; known are gzip, none"),
        (BASE + "TIMEOUT", "10s", "'10s' is not a number of milliseconds above 0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0", "'0' is not a number of milliseconds above 0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "99", "less than 0.1 s between two pushes"),
        ("OTEL_SDK_DISABLED", "yes", "unknown value 'yes'; known are true, false"),
        ("OTEL_SERVICE_NAME", "a\udcff", "it is not UTF-8"),
        (
            BASE + "METRICS_TEMPORALITY_PREFERENCE", "delta",
            "only `cumulative` is pushed, not 'delta'; the Collector's cumulativetodelta processor makes deltas of it",
        ),
    ],
)  # fmt: skip
def test_standard_words_that_mean_nothing_here_are_warned_of_and_left_out(
    name: str, value: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert settings("http://c:4318", **{name: value}) == settings("http://c:4318")
    assert [record.getMessage() for record in caplog.records] == [f"environment variable {name} is ignored: {text}"]


@pytest.mark.parametrize("value", ["a=b,c", "a=b\udcff", "a\udcff=b", "a=b%0A"])
def test_resource_attributes_are_left_out_as_a_whole_where_one_cannot_be_read(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert settings("http://c:4318", OTEL_RESOURCE_ATTRIBUTES="x=y," + value).resource == {}
    assert "OTEL_RESOURCE_ATTRIBUTES" in caplog.text
    assert caplog.text.count("the whole variable is ignored") == 1


def test_only_true_is_true() -> None:
    environ = {BASE + "INSECURE": "1", BASE + "PROTOCOL": "grpc", BASE + "ENDPOINT": "c:4317"}

    assert settings(**environ).tls is not None
    assert settings(**environ | {BASE + "INSECURE": "TRUE"}).tls is None


def test_nothing_is_looked_at_before_an_endpoint_is_known(caplog: pytest.LogCaptureFixture) -> None:
    environ = {
        "OTEL_SDK_DISABLED": "yes", BASE + "PROTOCOL": "x", BASE + "HEADERS": "x", BASE + "CERTIFICATE": "/nowhere",
        BASE + "TIMEOUT": "x",
    }  # fmt: skip

    assert read(environ) is None
    assert caplog.records == []


def test_what_turns_a_push_off_that_was_asked_for_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert read({"OTEL_METRICS_EXPORTER": "none"}, endpoint="http://c:4318") is None
    assert [record.getMessage() for record in caplog.records] == [
        "nothing is pushed to --otlp-endpoint: the environment has OTEL_METRICS_EXPORTER='none'"
    ]


@pytest.mark.parametrize("key", ["trace-bin", "grpc-timeout", "te", "content-type"])
def test_headers_that_grpc_keeps_for_itself_are_refused(key: str) -> None:
    text = refused("http://c:4317", protocol="grpc", **{BASE + "HEADERS": f"{key}=secret"})

    assert text.startswith("environment variable OTEL_EXPORTER_OTLP_HEADERS: entry 1")
    assert "secret" not in text


@pytest.mark.parametrize(
    ("headers", "entry"),
    [
        ("Authorization: Basic c2VjcmV0==", 1),  # a colon: all is key up to the padding
        ("a=b,Bearer secret=", 2),
        ("a=b,,api-key:secret=x", 3),  # an empty entry is counted as well
        ("x-token=abc,secret more=1", 2),
        ("sec%0Aret=secret", 1),
        ("x=secret%0A", 1),
        ("secret", 1),
        ("x=secret%C3%A9", 1),
    ],
)
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_no_message_shows_anything_of_a_header_that_is_not_understood(
    headers: str, entry: int, protocol: str
) -> None:
    text = refused("http://c:4317", protocol=protocol, **{BASE + "HEADERS": headers})

    assert text.startswith(f"environment variable OTEL_EXPORTER_OTLP_HEADERS: entry {entry} ")
    assert not {"secret", "c2v", "basic", "bearer", "api-key", "ret"} & set(text.lower().replace("`", " ").split())
    assert "c2vjcmv0" not in text.lower()
    assert "secret" not in text.lower()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize(
    "endpoint",
    ["user:secret@c:4318", "ftp://c:4318?key=secret", "http://user:secret", "http://user:secret@",
     "ftp://c:4318#secret", "ftp://c:4318/x?key=secret&a=@", "http://user:a@secret@c", "http://[secret"],
)  # fmt: skip
def test_no_message_shows_what_may_be_a_secret_of_the_endpoint(endpoint: str, protocol: str) -> None:
    assert "secret" not in refused(endpoint, protocol=protocol)


def test_files_that_are_not_there_and_halves_of_pairs_are_refused(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("")

    assert refused("https://c:4318", **{BASE + "CERTIFICATE": "/nowhere/ca.pem"}) == (
        "environment variable OTEL_EXPORTER_OTLP_CERTIFICATE: there is no file /nowhere/ca.pem"
    )
    assert "belong together" in refused("https://c:4318", **{BASE + "CLIENT_KEY": str(key)})


@pytest.mark.parametrize(
    "value", ["authorization=Bearer secret%0A", "bad name=secret", "secret", "x=secret\u00e9", "=secret"]
)
def test_no_message_shows_the_value_of_a_header(value: str) -> None:
    text = refused("http://c:4318", **{BASE + "HEADERS": value})

    assert "secret" not in text
    assert "OTEL_EXPORTER_OTLP_HEADERS" in text


def test_no_credentials_in_the_endpoint() -> None:
    text = refused("http://user:secret@c:4318")

    assert text == "--otlp-endpoint: credentials do not belong there: use OTEL_EXPORTER_OTLP_HEADERS"


def test_settings_do_not_print_their_headers() -> None:
    assert "secret" not in repr(settings("http://c:4318", **{BASE + "HEADERS": "authorization=secret"}))


_WORD = st.text("abcXYZ019-_.", min_size=1)
_VALUE = st.text("abc XYZ019-_.%~/:", max_size=12).map(str.strip).filter(bool)


@given(st.dictionaries(_WORD, _VALUE.map(lambda text: text.replace("%", "%25").replace(" ", "%20")), max_size=4))
def test_lists_are_read_as_the_sdk_reads_them(pairs: dict[str, str]) -> None:
    text = ",".join(f"{key}={value}" for key, value in pairs.items())

    found = settings("http://c:4318", **{BASE + "HEADERS": text, "OTEL_RESOURCE_ATTRIBUTES": text})

    assert dict(found.headers) == parse_env_headers(text, liberal=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", text)
        assert dict(found.resource) == dict(OTELResourceDetector().detect().attributes)
