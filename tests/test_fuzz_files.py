"""Files that people write: whatever is in them, they are read or refused in a line that names the place."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from claimscope import config
from claimscope.health.kernel_lines import parse_line
from claimscope.health.kmsg import parse_record
from claimscope.health.sources import read_thresholds
from claimscope.nvml.control import MAX_LINE, answer
from claimscope.sim.scenario import ScenarioError, decode_scenario
from claimscope.taints.policy import read_policy
from claimscope.watchedfile import WatchedFile
from claimscope.web.serving.source import read_serving
from claimscope.web.serving.webconfig import WebConfigError, read_web_config
from claimscope.yamlfile import ConfigError, read_file
from fuzzing import JSON_WORDS, QUICK, SECRET, SLOW, YAML_WORDS, deep, laughs, merging_laughs, mutated

CONFIG = b"log_level: debug\nsampling_hz: 5\ncollectors: [processes]\nsimulate: h100x8\nweb_listen_address: ':1'\n"
CONTROLLER = b"log_level: debug\nlease_seconds: 20\nleader_election: off\nweb_listen_address: ':1'\n"
POLICY = b"""\
mode: enforce
groups:
  NVIDIA-A100-SXM4-40GB: {mode: announce}
rules:
  gpu_lost: {no_execute: true}
budgets: {fleet_share: 0.05, group_share: 0.1}
rate: {least: 2, seconds: 1800}
pause:
- {group: NVIDIA-H100-80GB-HBM3, author: ann, reason: firmware roll-out, until: 2030-01-31T18:00:00Z}
"""
THRESHOLDS = b"startup_grace_seconds: 60\nboot_grace_seconds: 0\n"
SCENARIO = b"""\
pods:
  - {namespace: a, name: b, workload: training, claims: [{name: c, devices: ['gpu:0']}]}
faults:
  - {kind: xid, at: 5, gpu: 1, code: 94, every: 10}
  - {kind: ecc, at: 1, gpu: 0}
  - {kind: lost, at: 9, gpu: 2}
"""
HASH = "$2b$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"  # of no password of anybody
WEB = f"""\
tls_server_config:
  cert_file: server.crt
  key_file: server.key
  client_ca_file: ca.crt
  client_auth_type: RequireAndVerifyClientCert
  client_allowed_sans: [prometheus]
  min_version: TLS12
http_server_config:
  headers: {{X-Frame-Options: deny}}
basic_auth_users:
  alice: {HASH}
rate_limit: {{interval: 1s, burst: 20}}
""".encode()


def read_config(text: bytes, name: str) -> object:
    return config.build(config.from_file(text.decode("utf-8", "surrogateescape"), name))


def read_controller_config(text: bytes, name: str) -> object:
    found = config.from_file(text.decode("utf-8", "surrogateescape"), name, config.ControllerConfig)
    return config.build(found, of=config.ControllerConfig)


READERS: dict[str, tuple[bytes, Callable[[bytes, str], object], type[Exception]]] = {
    "config": (CONFIG, read_config, ConfigError),
    "controller-config": (CONTROLLER, read_controller_config, ConfigError),
    "policy": (POLICY, lambda text, name: read_policy(text, name, 1_790_000_000.0), ConfigError),
    "thresholds": (THRESHOLDS, read_thresholds, ConfigError),
    "scenario": (SCENARIO, decode_scenario, ScenarioError),
    "web": (WEB, read_web_config, ConfigError),
}
every_file = pytest.mark.parametrize("what", READERS)


def refusal(what: str, text: bytes) -> str:
    """Why a file is refused; "" where it is not."""
    _, read, refused = READERS[what]
    try:
        read(text, "x.yaml")
    except refused as error:
        return str(error)
    return ""


@every_file
def test_the_files_as_they_are(what: str) -> None:
    assert refusal(what, READERS[what][0]) == ""


@every_file
@SLOW
@given(data=st.data())
def test_a_file_with_mistakes_is_read_or_refused_in_a_line(what: str, data: st.DataObject) -> None:
    said = refusal(what, data.draw(mutated((READERS[what][0],), YAML_WORDS) | st.binary(max_size=120)))
    assert said == "" or said.startswith("x.yaml")
    assert "\n" not in said
    assert len(said) < 3_000


@SLOW
@given(mutated((WEB,), YAML_WORDS))
def test_no_refusal_of_the_web_configuration_tells_a_password(data: bytes) -> None:
    """Hashes are worth guessing at, and a password may stand where its hash belongs."""
    said = refusal("web", data)
    assert not any(HASH[at : at + 8] in said for at in range(len(HASH) - 8)), said


def test_a_password_in_place_of_its_hash_is_refused_unseen() -> None:
    said = refusal("web", WEB.replace(HASH.encode(), SECRET.encode()))
    assert said.startswith("x.yaml:11:10: ")
    assert SECRET not in said


@every_file
@pytest.mark.parametrize(
    "text",
    [
        laughs(12, "log_level").encode(), laughs(12, "pods").encode(), laughs(12, "mode").encode(),
        laughs(12, "basic_auth_users").encode(), merging_laughs(12).encode(), b"mode: &a [*a]", b"pods: &a {b: *a}",
    ],
    ids=["log_level", "pods", "mode", "users", "merged", "itself", "itself-mapped"],
)  # fmt: skip
def test_a_few_lines_that_stand_for_billions_are_refused_at_once(what: str, text: bytes) -> None:
    tracemalloc.start()
    began = time.perf_counter()
    try:
        said = refusal(what, text)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert said.startswith("x.yaml")
    assert most < 20 << 20
    assert time.perf_counter() - began < 3


@every_file
@pytest.mark.parametrize("text", [b"a: " + b"[\n" * 3_000, b"{a: " * 3_000, b"- " * 3_000, b"? " * 2_000],
                         ids=["lists", "mappings", "dashes", "keys"])  # fmt: skip
def test_what_is_nested_too_deep_is_refused(what: str, text: bytes) -> None:
    assert refusal(what, text).startswith("x.yaml")


@every_file
def test_what_is_too_long_is_refused_unread(what: str) -> None:
    began = time.perf_counter()
    assert "bytes: this is no" in refusal(what, b"#" * (1 << 21))
    assert time.perf_counter() - began < 0.5


def odd_file(kind: str, path: Path) -> None:
    """Something at a path that is no file of settings."""
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "sparse":
            with path.open("wb") as file:
                file.truncate(3 << 30)
        case "directory":
            path.mkdir()


ODD_FILES = {
    "fifo": "a FIFO or a device, and no regular file: name a file",
    "device": "a FIFO or a device, and no regular file: name a file",
    "sparse": "more than 1048576 bytes: this is no file of settings",
    "directory": "Is a directory",
}


@pytest.mark.parametrize(("kind", "said"), ODD_FILES.items())
def test_what_is_no_file_is_refused_at_once_and_unread(kind: str, said: str, tmp_path: Path) -> None:
    """Nobody writes into the FIFO: who waits for that waits for ever."""
    path = tmp_path / "x.yaml"
    path.write_text("good")
    file = WatchedFile(path, bytes.decode, about="the file")
    assert file.poll() == "good"
    path.unlink()
    odd_file(kind, path)
    tracemalloc.start()
    try:
        assert (file.poll(), file.up) == (None, False)
        with pytest.raises((ConfigError, OSError), match=said):
            read_file(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 << 20


@pytest.mark.parametrize(("kind", "said"), ODD_FILES.items())
def test_a_certificate_that_is_no_file_is_refused_at_once(kind: str, said: str, tmp_path: Path) -> None:
    odd_file(kind, tmp_path / "tls.crt")
    text = b"tls_server_config: {cert_file: tls.crt, key_file: tls.key}"
    with pytest.raises(WebConfigError) as caught:
        read_serving(text, str(tmp_path / "web.yaml"))
    assert str(caught.value).startswith(f"{tmp_path}/web.yaml: cert_file {tmp_path}/tls.crt: ")
    assert said.removesuffix("file of settings") in str(caught.value)


def test_a_list_that_is_written_once_and_meant_twice_is_fine() -> None:
    said = refusal("scenario", SCENARIO + b"  - {kind: xid, at: &when 6, gpu: 1, code: 13}\n"
                   b"  - {kind: xid, at: *when, gpu: 2, code: 13}\n")  # fmt: skip
    assert said == ""


# --- lines ---

_KERNEL = (
    b"NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
    b"NVRM: GPU at PCI:0000:65:00: GPU-5e8c1f7a-0000-0000-0000-000000000000",
    b"NVRM: Xid (PCI:0000:3b:00): 149, NETIR Link Fatal XC0 i0 Link 04 (0x0004ca02 0x00000000 0x00000000 0x0)",
    b"pcieport 0000:64:00.0: AER: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer",
)


@QUICK
@given(mutated(_KERNEL))
def test_a_kernel_line_with_mistakes_says_little_or_nothing(data: bytes) -> None:
    found = parse_line(data.decode("utf-8", "replace"))
    if found is not None:
        assert 0 <= (found.code or 0) < 100_000
        assert all(len(value) <= 400 for value in found.evidence.values())


@QUICK
@given(mutated((b"3,340,5690716,-,caller=T1;" + _KERNEL[0] + b"\n SUBSYSTEM=pci\n", b"6,339,5140900,-;x\n")))
def test_a_kernel_record_with_mistakes_is_one_or_none(data: bytes) -> None:
    record = parse_record(data)
    assert record is None or len(record.text) <= len(data)


class _Controls:
    """Takes every command; there is no sampler."""

    def release(self) -> None:
        pass

    def acquire(self) -> None:
        pass

    def burst(self, hz: float, seconds: float) -> None:
        assert 0 < hz <= 100
        assert 0 < seconds <= 60


@QUICK
@given(
    mutated((b'{"command":"burst","hz":100.0,"seconds":10.0}', b'{"command":"release"}'), JSON_WORDS)
    | st.binary(max_size=60) | st.integers(900, 3_000).map(deep)
)  # fmt: skip
def test_the_control_socket_answers_every_line(line: bytes) -> None:
    assume(b"status" not in line)  # it needs a sampler
    reply = answer(line, _Controls())  # type: ignore[arg-type]
    assert isinstance(reply["ok"], bool)
    assert len(str(reply)) < MAX_LINE + 1_000
