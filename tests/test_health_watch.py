"""The parts of health put together on one node: sources in; metrics, JSON, journal and Lease out."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from claimscope.health.kernel_lines import parse_line
from claimscope.health.kmsg import KernelReport
from claimscope.health.model import DeviceHealth, Finding, RuleState, Severity
from claimscope.health.report import (
    HealthSamples,
    LeaseFindings,
    all_findings,
    document,
    findings_annotation,
    own_samples,
    words,
)
from claimscope.health.sources import KernelLogSource, read_thresholds, thresholds_file
from claimscope.health.thresholds import Thresholds
from claimscope.health.watch import HealthView, HealthWatch, journal_of
from claimscope.model import Entity, Event, Inventory, Window
from claimscope.nvml import control
from claimscope.nvml.supervisor import SupervisorState
from claimscope.yamlfile import ConfigError
from health_help import gpu_device

SECOND = 1_000_000_000
NOW, WALL = 10_000 * SECOND, 1_700_000_000 * SECOND


class Watched:
    """A node with two GPUs, each with one pod unless told otherwise."""

    def __init__(self, *, kernel_log: bool = False, journal: bytes = b"", boot_id: str = "boot-1") -> None:
        self.now = 0.0
        self.pods: Mapping[str, str] = {"GPU-0": "ml/train", "GPU-1": "ml/serve"}
        self.watch = HealthWatch(
            boot_id=boot_id, thresholds=Thresholds(), pod_of=lambda uuid, pid: self.pods.get(uuid), now_ns=NOW,
            wall_ns=WALL, kernel_log=kernel_log, journal=journal_of(journal),
        )  # fmt: skip
        self.watch.inventory(inventory(), *self.times)

    @property
    def times(self) -> tuple[int, int]:
        return NOW + round(self.now * SECOND), WALL + round(self.now * SECOND)

    def xid(self, code: int, uuid: str = "GPU-0") -> None:
        self.watch.event(Event(entity=uuid, kind="xid", code=code, wall_ns=self.times[1]), *self.times)

    def log(self, text: str, sequence: int = 1) -> None:
        line = parse_line(text)
        assert line is not None
        report = KernelReport(line=line, count=1, sequence=sequence, wall_ns=self.times[1])
        self.watch.kernel([report], sequence, *self.times)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            self.now += 0.25
            self.watch.tick(*self.times)

    def evidence(self) -> dict[str, dict[str, str]]:
        return {f"{one.uuid} {one.rule}": dict(one.evidence) for one in all_findings(self.watch.view())}


def inventory(**changes: object) -> Inventory:
    known: dict[str, object] = {
        "session": 1, "epoch": 1, "driver_version": "580.65.06", "nvml_version": None, "cuda_version": None,
        "devices": (gpu_device(0), gpu_device(1)),
    }  # fmt: skip
    return Inventory(**{**known, **changes})  # type: ignore[arg-type]


def test_without_a_kernel_log_an_event_counts_at_once() -> None:
    node = Watched()
    node.xid(79)
    assert node.watch.changed
    assert node.evidence() == {
        "GPU-0 xid_lost": {
            "xid": "79", "meaning": "the GPU no longer answers on PCIe: power, heat, seat or the bus",
            "pod": "ml/train",
        }
    }  # fmt: skip


def test_an_event_that_both_sources_tell_is_one_finding_with_what_both_know() -> None:
    node = Watched(kernel_log=True)
    node.xid(79)
    node.run(0.5)
    node.log("NVRM: Xid (PCI:0000:10:00): 79, pid='77', name=train, GPU has fallen off the bus.")
    assert node.evidence() == {}
    node.run(2.5)
    (evidence,) = node.evidence().values()
    assert (evidence["pid"], evidence["pod"], evidence["process"]) == ("77", "ml/train", "train")
    assert node.watch.view().began == {("GPU-0", Severity.LOST): 1}


def test_a_reset_that_the_log_tells_frees_what_it_repairs() -> None:
    uuid, other = (f"GPU-{digit * 8}-0000-0000-0000-000000000000" for digit in "12")
    node = Watched(kernel_log=True)
    device = dataclasses.replace(gpu_device(0), entity=Entity(uuid=uuid, gpu=0))
    node.watch.inventory(inventory(devices=(device,)), *node.times)
    node.xid(95, uuid)  # unhealthy until the GPU is reset
    node.run(40)

    def states() -> list[tuple[str, RuleState]]:
        return [(finding.rule, finding.state) for finding in all_findings(node.watch.view())]

    node.log(f"GPU reset executed: {other}, success: true")
    node.run(3)
    assert states() == [("xid_fatal", RuleState.LATCHED)]
    node.log(f"GPU reset executed: {uuid}, success: false")
    node.run(3)
    assert states() == [("xid_fatal", RuleState.LATCHED), ("reset_failed", RuleState.LATCHED)]
    node.log(f"GPU reset executed: {uuid}, success: true")
    node.run(3)
    assert ("xid_fatal", RuleState.CLEARING) in states()


def test_application_xids_from_one_pod_raise_nothing_and_from_several_a_degraded_finding() -> None:
    node = Watched()
    for _ in range(5):
        node.xid(31)
        node.run(400)
    assert node.evidence() == {}
    node.pods = {"GPU-0": "ml/other"}
    node.xid(31)
    assert node.evidence()["GPU-0 xid_repeat"]["pods"] == "ml/other, ml/train"


def test_the_journal_keeps_findings_and_where_the_log_was_read() -> None:
    node = Watched(kernel_log=True)
    node.log("NVRM: Xid (PCI:0000:10:00): 79, GPU has fallen off the bus.", sequence=41)
    assert node.watch.journal().kernel_sequence is None  # its fault still waits: it is read again after a restart
    node.run(3)
    kept = node.watch.journal()
    assert kept.kernel_sequence == 41
    after = Watched(journal=msgspec.json.encode(kept))
    assert after.evidence() == node.evidence()
    assert after.watch.view().began == {}


@pytest.mark.parametrize("raw", [b"{}", b'{"engine":{"devices":[]}}', b'{"engine":{"boot_id":"\xff"}}'])
def test_a_journal_that_makes_no_sense_starts_anew(raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert journal_of(raw) is None
    assert caplog.text.count("the journal's part about health is not usable, findings start anew") == 1


def test_samples() -> None:
    node = Watched()
    node.xid(79)
    made = HealthSamples()
    samples = made.of(node.watch.view(), {"GPU-0": "0", "GPU-1": "1"})
    shown = [
        (sample.family, sample.value, *(value for name, value in sample.labels if name not in ("uuid", "gpu")))
        for sample in samples
        if ("gpu", "0") in sample.labels
    ]
    assert shown == [
        ("gpu_health", 0.0, "ok"),
        ("gpu_health", 0.0, "degraded"),
        ("gpu_health", 0.0, "unhealthy"),
        ("gpu_health", 1.0, "lost"),
        ("gpu_health_finding_info", 1.0, "xid_lost", "lost", "latched"),
        ("gpu_health_finding_since_timestamp_seconds", 1_700_000_000.0, "xid_lost"),
        ("gpu_health_findings_total", 0, "degraded"),
        ("gpu_health_findings_total", 0, "unhealthy"),
        ("gpu_health_findings_total", 1, "lost"),
    ]
    again = made.of(node.watch.view(), {"GPU-0": "0", "GPU-1": "1"})
    assert all(new.labels is old.labels for new, old in zip(again, samples, strict=True))
    rules = {
        (dict(sample.labels)["rule"], dict(sample.labels)["state"]): sample.value
        for sample in own_samples(node.watch.view())
        if sample.family == "claimscope_agent_rule_state"
    }
    assert (rules["xid_lost", "ok"], rules["xid_lost", "latched"]) == (1, 1)
    assert (rules["row_remap_pending", "ok"], rules["row_remap_pending", "unknown"]) == (0, 2)
    assert ("xid_fatal", "latched") not in rules


def test_a_gpu_that_nvml_does_not_name_any_more_is_shown_while_something_stands_against_it() -> None:
    node = Watched()
    node.xid(79)
    samples = HealthSamples().of(node.watch.view(), {"GPU-1": "1"})
    lost = [sample for sample in samples if ("uuid", "GPU-0") in sample.labels]
    assert {dict(sample.labels)["gpu"] for sample in lost} == {""}
    assert [each["gpu"] for each in document(node.watch.view(), {"GPU-1": "1"})["devices"]] == [None, 1]  # type: ignore[attr-defined]


def test_acknowledging_says_what_came_of_it() -> None:
    node = Watched()
    assert node.watch.acknowledge("GPU-0", "xid_lost") == "nothing stands against GPU-0; no device has a finding"
    node.xid(79)
    assert node.watch.acknowledge("GPU-0", "xid_fatal") == (
        "xid_fatal does not stand against GPU-0; there are xid_lost"
    )
    assert node.watch.acknowledge("GPU-1", "xid_lost") == "nothing stands against GPU-1; there are GPU-0 xid_lost"
    assert node.watch.acknowledge("GPU-0", "xid_lost") is None
    assert node.evidence() == {}


class _Sampler:
    """Asked for nothing here."""

    state = SupervisorState(
        pid=None, restarts={}, quarantined=(), unreaped=False, last_message_ns=None, last_window_ns=None,
        malformed_messages=0, released=False, status=None, inventory=None,
    )  # fmt: skip

    def release(self) -> None: ...

    def acquire(self) -> None: ...

    def burst(self, hz: float, seconds: float) -> None: ...


class _Health:
    """What the node answers."""

    def __init__(self, watch: HealthWatch) -> None:
        self._watch = watch

    def acknowledge(self, uuid: str, rule: str) -> str | None:
        return self._watch.acknowledge(uuid, rule)

    def health_document(self) -> dict[str, object] | None:
        return document(self._watch.view(), {"GPU-0": "0", "GPU-1": "1"})


def test_the_control_socket_shows_and_acknowledges() -> None:
    node = Watched()
    node.xid(79)

    def ask(line: bytes) -> dict[str, object]:
        return control.answer(line, _Sampler(), _Health(node.watch))

    assert ask(b'{"command":"health"}')["ok"] is True
    request = b'{"command":"acknowledge","uuid":"GPU-0","rule":"xid_lost"}'
    assert ask(request) == {"ok": True, "message": "xid_lost of GPU-0 is over; new evidence brings it back"}
    assert ask(request) == {"ok": False, "error": "nothing stands against GPU-0; no device has a finding"}
    assert "health and acknowledge" in str(ask(b'{"command":"heal"}'))
    node.run(3)
    now_ns, wall_ns = node.times
    window = Window(
        entity="GPU-0", session=1, epoch=1, start_ns=now_ns - SECOND, end_ns=now_ns, end_wall_ns=wall_ns, ticks=10,
        text={"recovery_action": "gpu_reset"},
    )  # fmt: skip
    node.watch.window(window, now_ns, wall_ns)
    node.xid(79)
    assert ask(request) == {
        "ok": True,
        "message": "xid_lost of GPU-0 is over; new evidence brings it back. The driver still asks for gpu_reset: as "
        "long as it does, the device is not fit for work",
    }


@pytest.mark.parametrize(
    ("error", "rules"),
    [
        ("the NVIDIA kernel driver is not loaded (nvmlInit of x: ...)", {"recovery_action", "reset_failed"}),
        ("nvmlInit of x: timeout", {"recovery_action"}),
    ],
)
def test_a_driver_that_was_loaded_anew_and_still_wants_a_reset(error: str, rules: set[str]) -> None:
    node = Watched()

    def run(seconds: int) -> None:
        for _ in range(seconds):
            node.run(1)
            now_ns, wall_ns = node.times
            window = Window(
                entity="GPU-0", session=1, epoch=1, start_ns=now_ns - SECOND, end_ns=now_ns, end_wall_ns=wall_ns,
                ticks=10, text={"recovery_action": "gpu_reset"},
            )  # fmt: skip
            node.watch.window(window, now_ns, wall_ns)

    run(5)
    node.watch.inventory(inventory(devices=(), error=error), *node.times)
    node.watch.inventory(inventory(), *node.times)
    run(15)
    assert {key.removeprefix("GPU-0 ") for key in node.evidence()} == rules


def test_words_for_people_steer_no_terminal() -> None:
    node = Watched(kernel_log=True)
    assert words(document(node.watch.view(), {"GPU-0": "0"})) == "1 devices, nothing stands against any of them"
    node.log("NVRM: Xid (PCI:0000:10:00): 79, pid=1, name=\x1b[2Jx, GPU has fallen off the bus.")
    node.run(3)
    text = words(document(node.watch.view(), {"GPU-0": "0"}))
    assert text.startswith("GPU-0 lost: The GPU fell off the bus (XID 79) (xid_lost, latched); ")
    assert text.isprintable()


def _many(count: int) -> HealthView:
    def finding(number: int) -> Finding:
        return Finding(
            uuid=f"GPU-{number}", rule="power_brake" if number % 2 else "xid_lost",
            severity=Severity.DEGRADED if number % 2 else Severity.LOST, state=RuleState.FIRING,
            since_wall_ns=WALL, evidence={f"key{index}": "x" * 500 for index in range(20)}, clears="A reboot.",
        )  # fmt: skip

    devices = {
        f"GPU-{number}": DeviceHealth(
            uuid=f"GPU-{number}", severity=Severity.LOST, findings=(finding(number),), serial=f"S{number}"
        )
        for number in range(count)
    }
    return HealthView(boot_id="boot-1", devices=devices)


@pytest.mark.parametrize("count", [0, 1, 100])
def test_the_annotation_is_bounded_and_keeps_the_worst(count: int) -> None:
    text = findings_annotation(_many(count))
    assert len(text.encode()) <= 32 * 1024
    found = msgspec.json.decode(text, type=LeaseFindings)
    assert len(found.findings) + found.omitted == count
    assert found.omitted == 0 if count < 2 else found.omitted > 0
    shown = [finding.severity for finding in found.findings]
    assert shown == sorted(shown, reverse=True)  # "lost" before "degraded"
    assert count < 2 or shown.count("lost") > 20
    assert all(len(finding.evidence) == 6 and finding.serial for finding in found.findings)
    assert findings_annotation(_many(count)) == text


def test_the_annotation_says_what_it_says() -> None:
    node = Watched()
    node.xid(79)
    assert json.loads(findings_annotation(node.watch.view())) == {
        "boot_id": "boot-1",
        "findings": [
            {
                "uuid": "GPU-0", "rule": "xid_lost", "severity": "lost", "state": "latched", "since": 1_700_000_000,
                "serial": "165300", "clears": "A reboot, with no recovery action left afterwards.",
                "evidence": {
                    "xid": "79", "meaning": "the GPU no longer answers on PCIe: power, heat, seat or the bus",
                    "pod": "ml/train",
                },
            }
        ],
        "omitted": 0,
    }  # fmt: skip


# Files


def test_thresholds_follow_their_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "thresholds.yaml"
    file = thresholds_file(path)
    assert file.poll() is None
    assert (file.up, file.poll()) == (False, None)
    assert caplog.text.count("the file of thresholds is not taken, what was in force before stays: ") == 1

    path.write_text("stale_seconds: 5\n")
    assert file.poll() == Thresholds({"stale_seconds": 5.0})
    assert (file.up, file.poll()) == (True, None)

    other = tmp_path / "other"  # replaced as a whole, as a mounted ConfigMap is
    other.write_text("stale_seconds: 6\n")
    os.replace(other, path)
    assert file.poll() == Thresholds({"stale_seconds": 6.0})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nstale_secnds: 5\n", "t.yaml:1:1: health thresholds: a: there is no such threshold; stale_secnds: there "
         "is no such threshold; did you mean stale_seconds?"),
        ("# x\nstale_seconds: soon\n", "t.yaml:2:1: health thresholds: stale_seconds: found 'soon', expected a number "
         "(seconds)"),
        ("- 1\n", "t.yaml:1:1: expected `key: value` lines"),
        ("a: [\n", "t.yaml:2:1: not YAML: expected the node content, but found '<stream end>'"),
        ("thermal_slowdown_minutes: 60\n", "t.yaml:1:1: health thresholds: thermal_slowdown_minutes: found 60, "
         "expected at most thermal_slowdown_of_minutes (10), or it never fires"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_thresholds(text.encode(), "t.yaml")
    assert str(caught.value) == said


def test_an_empty_file_means_the_defaults() -> None:
    assert read_thresholds(b"# nothing\n", "t.yaml") == Thresholds()


def test_a_kernel_log_that_appears_later_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "kmsg"
    source = KernelLogSource(path, after=-1)
    assert source.poll(monotonic_ns=0, wall_ns=WALL) == ()
    path.write_text("4,7,1000000,-;NVRM: Xid (PCI:0000:10:00): 79, GPU has fallen off the bus.\n")
    assert source.poll(monotonic_ns=SECOND, wall_ns=WALL) == ()
    assert not source.up
    (report,) = source.poll(monotonic_ns=61 * SECOND, wall_ns=WALL)
    assert (report.line.code, report.sequence, source.up, source.sequence) == (79, 7, True, 7)
    assert caplog.text.count("the kernel log is not read: ") == 1
    source.close()
    assert (source.up, source.sequence, source.counts.records) == (False, 7, 1)


def test_a_kernel_log_that_may_not_be_opened_says_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "fifo")
    source = KernelLogSource(tmp_path / "fifo", after=None)
    assert source.poll(monotonic_ns=0, wall_ns=WALL) == ()
    assert "fifo is not a kernel log: Illegal seek" in caplog.text


def test_who_looked_before_goes_on_behind_what_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    line = "NVRM: Xid (PCI:0000:10:00): 79, GPU has fallen off the bus."
    path.write_text("".join(f"4,{number},{number}000000,-;{line}\n" for number in (5, 6)))
    source = KernelLogSource(path, after=5)
    assert [report.sequence for report in source.poll(monotonic_ns=0, wall_ns=WALL)] == [6]
    source.close()
    newcomer = KernelLogSource(path, after=None)
    assert newcomer.poll(monotonic_ns=0, wall_ns=WALL) == ()
    newcomer.close()


XID_119 = "NVRM: Xid (PCI:0000:10:00): 119, pid=1, name=x, Timeout"


def _restarted(kept: bytes, boot_id: str = "boot-1") -> Watched:
    """An agent that has not heard of NVML yet."""
    node = Watched(kernel_log=True, journal=kept, boot_id=boot_id)
    node.watch = HealthWatch(
        boot_id=boot_id, thresholds=Thresholds(), pod_of=lambda uuid, pid: None, now_ns=NOW, wall_ns=WALL,
        kernel_log=True, journal=journal_of(kept),
    )  # fmt: skip
    return node


@pytest.mark.parametrize("seconds", [0.5, 2.0, 600.0])
def test_a_fault_that_the_log_tells_before_nvml_answers_is_found(seconds: float) -> None:
    node = _restarted(b"")
    node.log(XID_119, sequence=11)
    node.run(seconds)
    view = node.watch.view()
    assert [each["pci_bus_id"] for each in document(view, {})["unplaced"]] == ["0000:10:00.0"]  # type: ignore[attr-defined]
    assert f"told of 0000:10:00.0, where no GPU is known: {XID_119}" in words(document(view, {}))
    assert [each.value for each in own_samples(view) if each.family.endswith("fault_events_unplaced")] == [1.0]
    node.watch.inventory(inventory(), *node.times)
    node.run(3)
    assert set(node.evidence()) == {"GPU-0 xid_fatal"}
    assert node.watch.view().unplaced == ()


def test_a_fault_without_a_gpu_survives_restarts_of_the_agent_but_no_reboot() -> None:
    node = _restarted(b"")
    node.log(XID_119, sequence=11)
    node.run(60)
    kept = msgspec.json.encode(node.watch.journal())
    assert json.loads(kept)["kernel_sequence"] == 11
    assert _restarted(kept, "boot-2").watch.view().unplaced == ()
    node = _restarted(kept)
    node.watch.inventory(inventory(), *node.times)
    node.run(3)
    assert set(node.evidence()) == {"GPU-0 xid_fatal"}


def test_gpus_are_where_the_journal_has_them_until_nvml_answers() -> None:
    node = Watched(kernel_log=True)
    node = _restarted(msgspec.json.encode(node.watch.journal()))
    node.log(XID_119, sequence=11)
    node.run(3)
    assert set(node.evidence()) == {"GPU-0 xid_fatal"}


def test_errors_of_other_pcie_devices_hold_nothing_up() -> None:
    node = Watched(kernel_log=True)
    for sequence in range(1, 40):
        node.log("pcieport 0000:00:01.0: AER: Corrected error received: 0000:c1:00.0", sequence)
        node.run(0.25)
        assert node.watch.journal().kernel_sequence == sequence
    assert (node.watch.view().foreign, node.watch.view().unplaced) == (39, ())


def test_a_gpu_that_never_stops_telling_holds_the_sequence_up_for_a_moment_only() -> None:
    node = Watched(kernel_log=True)
    for sequence in range(1, 60):
        node.log("NVRM: Xid (PCI:0000:10:00): 31, pid=1, name=x, MMU Fault", sequence)
        node.run(0.5)
    settled = node.watch.journal().kernel_sequence
    assert settled is not None
    assert settled >= 50


def test_a_quiet_log_is_followed_from_where_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_text("6,7,100,-;hello\n")
    source = KernelLogSource(path, after=None)
    assert source.poll(monotonic_ns=SECOND, wall_ns=WALL) == ()
    assert source.sequence == 7
    source.close()
    with path.open("a") as log:
        log.write(f"3,8,200,-;{XID_119}\n")
    source = KernelLogSource(path, after=7)
    assert [report.sequence for report in source.poll(monotonic_ns=2 * SECOND, wall_ns=WALL)] == [8]
    source.close()
