import gzip
import subprocess
from dataclasses import replace

import pytest

from claimscope.export.cluster import (
    CLAIM_FAMILIES,
    ClusterCollector,
    ClusterText,
    claim_samples,
    timed_samples,
)
from claimscope.metrics import cluster
from claimscope.model import Histogram, Sample
from cluster_data import (
    CLUSTER,
    GONE,
    NVIDIA,
    PULLING,
    SHARED,
    STANDBY,
    STUCK,
    TRAIN,
    UNWANTED,
    WALL,
    WATCHER,
)
from exposition import parsed, series_of


def lines(*samples: Sample) -> dict[tuple[str, ...], float]:
    """Family and label values, without namespace, name and uid."""
    return {(each.family, *(value for _, value in each.labels[3:])): each.value for each in samples}


def test_running_claim_literally() -> None:
    assert lines(*claim_samples(TRAIN)) == {
        ("dra_claim_info", NVIDIA, "training", "template", "gpu/h100", "RayJob", "train", "train-pg", "research"): 1,
        ("kube_resourceclaim_status_allocation_state", "running"): 1,
        ("dra_claim_created_timestamp_seconds",): WALL - 3600.0,
        ("dra_claim_allocated_timestamp_seconds",): WALL - 3590.0,
        ("dra_claim_requested_devices",): 2,
        ("dra_claim_device_info", "gpu", NVIDIA, "node-a", "gpu-0", "GPU-1", "node-a", "", "false"): 1,
        ("dra_claim_device_info", "gpu", NVIDIA, "node-a", "gpu-1", "GPU-2", "node-a", "", "false"): 1,
        ("dra_claim_device_health", NVIDIA, "node-a", "gpu-0", "healthy"): 1,
        ("dra_claim_device_health", NVIDIA, "node-a", "gpu-1", "unhealthy"): 1,
    }
    assert claim_samples(TRAIN)[0].labels[:3] == (
        ("namespace", "team-a"), ("resourceclaim", "train-0-gpus-x7k2p"), ("claim_uid", TRAIN.uid),
    )  # fmt: skip


def test_a_device_that_stands_twice_in_an_allocation_is_one_series() -> None:
    names = [each.family for each in claim_samples(replace(TRAIN, devices=(*TRAIN.devices, *TRAIN.devices)))]
    assert (names.count("dra_claim_device_info"), names.count("dra_claim_device_health")) == (2, 2)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (SHARED, {("dra_claim_consumed_capacity", NVIDIA, "node-b", "gpu-0", "s1", "memory"): 40 * 2.0**30}),
        (WATCHER, {("dra_claim_leaked",): 1}),
        (UNWANTED, {("dra_claim_unreferenced",): 1}),
        (STUCK, {}),
    ],
    ids=["shared", "leaked", "unreferenced", "stuck"],
)
def test_what_only_some_claims_have(view: object, expected: dict[tuple[str, ...], float]) -> None:
    rare = ("dra_claim_consumed_capacity", "dra_claim_leaked", "dra_claim_unreferenced", "dra_claim_device_health")

    found = lines(*claim_samples(view))  # type: ignore[arg-type]

    assert {key: value for key, value in found.items() if key[0] in rare} == expected


def test_claim_that_is_gone_has_no_series() -> None:
    assert claim_samples(GONE) == ()


def test_devices_that_two_requests_look_at_stand_once() -> None:
    one = WATCHER.devices[0]
    twice = replace(WATCHER, devices=(replace(one, health="Healthy"), replace(one, request="b", health="Healthy")))

    series_of(list(claim_samples(twice)))


def test_what_depends_on_the_time() -> None:
    assert {(each.family, *(value for _, value in each.labels)): each.value for each in timed_samples(CLUSTER)} == {
        ("dra_claim_held_not_running_seconds", "team-b", "infer", SHARED.uid, "crash_looping"): 600.0,
        ("dra_claim_held_not_running_seconds", "team-a", "eval-gpu", PULLING.uid, "pulling"): 40.0,
        ("dra_claim_pending_seconds", "team-c", "finetune-gpu", STUCK.uid, "finetune-0", NVIDIA): 5400.0,
        ("dra_claim_pending_seconds", "team-e", "", "", "notebook-ada", "mig.nvidia.com"): 300.0,
        ("dra_claim_pending_reason", "team-c", "finetune-gpu", STUCK.uid, "finetune-0", NVIDIA, "devices_in_use"): 1,
        ("dra_claim_pending_reason", "team-e", "", "", "notebook-ada", "mig.nvidia.com", "template_missing"): 1,
        ("dra_claim_pending_reason", "team-a", "eval-gpu", PULLING.uid, "eval-zk4xq", NVIDIA, "preparing"): 1,
    }


def test_clock_of_an_object_that_runs_ahead_gives_no_negative_age() -> None:
    early = replace(CLUSTER, wall_ns=(WALL - 10_000) * 1_000_000_000)

    assert {each.value for each in timed_samples(early)} == {0.0, 1.0}


def test_standby_shows_itself_alone() -> None:
    assert list(ClusterCollector().collect(STANDBY)) == list(STANDBY.own)


def plain(samples: list[Sample | Histogram]) -> list[Sample]:
    return [each for each in samples if isinstance(each, Sample)]


@pytest.mark.parametrize("claim_series", ["all", "essential", "off"])
@pytest.mark.parametrize("openmetrics", [False, True])
def test_text_says_what_the_samples_say(claim_series: str, openmetrics: bool) -> None:
    collector = ClusterCollector(claim_series)  # type: ignore[arg-type]
    exposition = ClusterText(collector, {}).exposition(CLUSTER, ())

    text = b"".join(exposition.chunks(openmetrics))
    series = parsed(text.decode(), openmetrics)

    expected = series_of(plain(list(collector.collect(CLUSTER))))
    assert expected.items() <= series.items()
    rest = {name for name, _ in series.keys() - expected.keys()}
    assert {name.rpartition("_")[2] for name in rest} == {"bucket", "count", "sum", "series"}
    assert gzip.decompress(exposition.gzipped(openmetrics)) == text
    assert ("dra_claim_info" in text.decode()) == (claim_series != "off")


def test_essential_keeps_who_holds_what() -> None:
    text = b"".join(ClusterText(ClusterCollector("essential"), {}).exposition(CLUSTER, ()).chunks(False)).decode()

    claims = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} & {*CLAIM_FAMILIES}
    assert claims == {
        "dra_claim_info", "kube_resourceclaim_status_allocation_state", "dra_claim_device_info",
        "dra_claim_device_health", "dra_claim_leaked",
    }


def test_layers_add_up_to_the_series() -> None:
    text = b"".join(ClusterText(ClusterCollector(), {}).exposition(CLUSTER, ()).chunks(False))

    series = parsed(text.decode(), openmetrics=False)
    assert sum(value for (name, _), value in series.items() if name.endswith("_series")) == len(series)


def test_families_stay_together_across_claims() -> None:
    text = b"".join(ClusterText(ClusterCollector(), {}).exposition(CLUSTER, ()).chunks(False)).decode()

    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    assert types[:10] == list(CLAIM_FAMILIES)


def test_only_claims_that_changed_are_written_anew() -> None:
    written: list[str] = []

    class Counting(ClusterCollector):
        def claim_samples(self, view):  # type: ignore[no-untyped-def]
            written.append(view.name)
            return super().claim_samples(view)

    text = ClusterText(Counting(), {})
    text.exposition(CLUSTER, ())
    del written[:]
    changed = replace(TRAIN, deviceclass="other")
    claims = {uid: changed if uid == TRAIN.uid else view for uid, view in CLUSTER.claims.items() if uid != STUCK.uid}

    second = b"".join(text.exposition(replace(CLUSTER, claims=claims), ()).chunks(False)).decode()

    assert written == [TRAIN.name]
    assert 'deviceclass="other"' in second
    assert "dra_claim_created_timestamp_seconds{namespace=\"team-c\"" not in second


def test_older_exposition_still_reads_the_same_while_a_newer_one_is_made() -> None:
    text = ClusterText(ClusterCollector(), {})
    first = text.exposition(CLUSTER, ())
    before = b"".join(first.chunks(True))

    text.exposition(replace(CLUSTER, claims={}), ())

    assert b"".join(first.chunks(True)) == before


def test_empty_cluster_is_a_whole_answer() -> None:
    exposition = ClusterText(ClusterCollector(), {}).exposition(STANDBY, ())

    assert b"".join(exposition.chunks(True)).startswith(b"# HELP claimscope_controller_leader ")
    assert len(parsed(b"".join(exposition.chunks(False)).decode(), openmetrics=False)) == 4


def test_every_family_of_claims_is_in_the_tables() -> None:
    assert set(CLAIM_FAMILIES) <= set(cluster.FAMILIES)


def test_promtool_finds_no_fault(promtool: str) -> None:
    text = b"".join(ClusterText(ClusterCollector(), {}).exposition(CLUSTER, ()).chunks(False))

    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False, timeout=30)

    assert (done.returncode, done.stderr.decode()) == (0, "")
