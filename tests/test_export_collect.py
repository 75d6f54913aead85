from dataclasses import replace

import pytest

from claimscope.export.collect import Collector
from claimscope.metrics import health
from claimscope.metrics.spec import Kind, families
from claimscope.metrics.tables import QUANTITIES as TABLES
from claimscope.model import Account, Hold, Inventory, PodRef, ProcessUse, Sample, Snapshot
from exposition import GPU_0, GPU_1, GPU_2, MIG, QUANTITIES, SNAPSHOT, TRAIN, WALL, series_of, total, window

SETTLED = replace(SNAPSHOT, own=())


def shown(snapshot: Snapshot, family: str) -> list[tuple[dict[str, str], float]]:
    return [
        (dict(sample.labels), sample.value)
        for sample in Collector(QUANTITIES).collect(snapshot)
        if sample.family == family
    ]


def test_gauge_shows_last_value_of_entities_that_are_up() -> None:
    assert shown(SETTLED, "gpu_power_watts") == [
        ({"uuid": GPU_0, "gpu": "0"}, 412.5),
        ({"uuid": GPU_1, "gpu": "1"}, 98.0),
    ]


def test_device_whose_data_is_stale_keeps_identity_and_totals_only() -> None:
    stale = replace(SETTLED, up={**SETTLED.up, GPU_0: False})

    about = [
        sample.family
        for sample in Collector(QUANTITIES).collect(stale)
        if ("uuid", GPU_0) in sample.labels and sample.family.startswith("gpu_")
    ]

    assert sorted(set(about)) == [
        "gpu_allocation_info",
        "gpu_busy_seconds_total",
        "gpu_energy_joules_total",
        "gpu_info",
        "gpu_nvlink_link_receive_bytes_total",
        "gpu_size_ratio",
        "gpu_unattributed_busy_seconds_total",
        "gpu_unattributed_energy_joules_total",
        "gpu_unattributed_xid_errors_total",
        "gpu_up",
        "gpu_xid_errors_total",
        "gpu_xid_last_timestamp_seconds",
    ]


def test_up_covers_every_device_and_the_lost() -> None:
    assert shown(SETTLED, "gpu_up") == [
        ({"uuid": GPU_0, "gpu": "0"}, 1.0),
        ({"uuid": GPU_1, "gpu": "1"}, 1.0),
        ({"uuid": MIG, "gpu": "1"}, 1.0),
        ({"uuid": GPU_2, "gpu": "2"}, 0.0),
    ]


def test_a_mig_device_is_part_of_a_gpu() -> None:
    assert shown(SETTLED, "gpu_size_ratio") == [
        ({"uuid": GPU_0, "gpu": "0"}, 1.0),
        ({"uuid": GPU_1, "gpu": "1"}, 1.0),
        ({"uuid": MIG, "gpu": "1"}, 1 / 7),
        ({"uuid": GPU_2, "gpu": "2"}, 1.0),
    ]


def test_lost_gpu_never_seen_has_an_empty_index() -> None:
    unseen = Inventory(
        session=1, epoch=1, driver_version=None, nvml_version=None, cuda_version=None, devices=(), lost={GPU_2: "gone"}
    )
    bare = Snapshot(node="n", wall_ns=WALL, monotonic_ns=0, inventory=unseen)

    assert shown(bare, "gpu_up") == [({"uuid": GPU_2, "gpu": ""}, 0.0)]


def test_before_the_sampler_spoke_nothing_is_invented() -> None:
    assert Collector(QUANTITIES).collect(Snapshot(node="n", wall_ns=WALL, monotonic_ns=0, inventory=None)) == []


def test_axis_becomes_a_label_in_numeric_order() -> None:
    assert shown(SETTLED, "gpu_nvlink_link_receive_bytes_total") == [
        ({"uuid": GPU_0, "gpu": "0", "link": "2"}, 2.0),
        ({"uuid": GPU_0, "gpu": "0", "link": "10"}, 10.0),
    ]


def test_text_is_a_sparse_state_set() -> None:
    assert shown(SETTLED, "gpu_performance_state") == [
        ({"uuid": GPU_0, "gpu": "0", "state": "P0"}, 1.0),
        ({"uuid": GPU_1, "gpu": "1", "state": "P2"}, 1.0),
    ]


def test_extremes_name_their_window() -> None:
    labels = {"uuid": GPU_0, "gpu": "0", "engine": "gpu", "window": "1m"}

    assert shown(SETTLED, "gpu_utilization_min_ratio") == [(labels, 0.5)]
    assert shown(SETTLED, "gpu_utilization_max_ratio") == [(labels, 1.0)]


def test_counters_carry_their_start() -> None:
    starts = {
        sample.family: sample.start_ns
        for sample in Collector(QUANTITIES).collect(SETTLED)
        if sample.family.endswith("energy_joules_total")
    }

    began = WALL - 3_600_000_000_000
    assert starts == {
        "gpu_energy_joules_total": began,
        "dra_claim_gpu_energy_joules_total": began,
        "pod_gpu_energy_joules_total": began,
        "gpu_unattributed_energy_joules_total": began,
    }


def test_attribution_says_how_a_share_was_found() -> None:
    attributions = {
        (dict(sample.labels)["resourceclaim"], sample.family): dict(sample.labels)["attribution"]
        for sample in Collector(QUANTITIES).collect(SETTLED)
        if sample.family.startswith("dra_claim_gpu_")
    }

    assert attributions == {
        ("train", "dra_claim_gpu_allocated_seconds_total"): "exclusive",
        ("train", "dra_claim_gpu_busy_seconds_total"): "exclusive",
        ("train", "dra_claim_gpu_energy_joules_total"): "exclusive",
        ("train", "dra_claim_gpu_memory_used_bytes"): "exclusive",
        ("train", "dra_claim_gpu_xid_errors_total"): "exclusive",
        ("shared", "dra_claim_gpu_busy_seconds_total"): "process",
        ("shared", "dra_claim_gpu_energy_joules_total"): "share",
        ("shared", "dra_claim_gpu_memory_used_bytes"): "process",
        ("no-uid", "dra_claim_gpu_energy_joules_total"): "share",
        ("ended", "dra_claim_gpu_busy_seconds_total"): "exclusive",
        ("ended", "dra_claim_gpu_energy_joules_total"): "exclusive",
    }


def test_unknown_claim_uid_is_an_empty_label() -> None:
    labels = {dict(sample.labels)["resourceclaim"]: sample.labels for sample in _claims("energy_joules_total")}

    assert labels["no-uid"] == (
        ("namespace", "team-b"),
        ("resourceclaim", "no-uid"),
        ("claim_uid", ""),
        ("uuid", MIG),
        ("attribution", "share"),
    )


def _claims(stem: str) -> list[Sample]:
    samples = Collector(QUANTITIES).collect(SETTLED)
    return [sample for sample in samples if sample.family == f"dra_claim_gpu_{stem}"]


def test_every_edge_stands_once_and_a_hold_without_pods_stays() -> None:
    edges = [
        (labels["source"], labels["resourceclaim"], labels["pod"], labels["container"])
        for labels, _ in shown(SETTLED, "gpu_allocation_info")
    ]

    assert sorted(edges) == [
        ("claim", "no-uid", "", ""),
        ("claim", "shared", "infer-0", "server"),
        ("claim", "train", "train-0", "main"),
        ("claim", "train", "train-0", 'odd"\\name'),
        ("pod", "", "old-0", "main"),
    ]


def test_two_holds_that_give_the_same_edge_give_it_once() -> None:
    pods = (PodRef(namespace="team-a", pod="p", container="c"),)
    holds = (Hold(holder=TRAIN, entity=GPU_0, pods=pods), Hold(holder=TRAIN, entity=GPU_0, pods=pods, share=0.5))

    assert len(shown(replace(SETTLED, holds=holds), "gpu_allocation_info")) == 1


def test_running_account_wins_over_an_ended_namesake() -> None:
    ended = Account(
        holder=TRAIN, entity=GPU_0, basis="exclusive", start_wall_ns=1, ended_wall_ns=2, totals={"energy": 9.0}
    )
    again = replace(ended, start_wall_ns=3, ended_wall_ns=None, totals={"energy": 1.0})

    values = [
        value for _, value in shown(replace(SETTLED, accounts=(ended, again)), "dra_claim_gpu_energy_joules_total")
    ]

    assert values == [1.0]


def test_processes_are_told_by_pid() -> None:
    told = window(
        GPU_0,
        processes=(ProcessUse(pid=20, memory_used_bytes=7), ProcessUse(pid=3), ProcessUse(pid=4, memory_used_bytes=8)),
    )

    samples = Collector(TABLES).collect(replace(SETTLED, windows={GPU_0: told}))

    assert [(dict(s.labels)["pid"], s.value) for s in samples if s.family == "gpu_process_memory_used_bytes"] == [
        ("4", 8.0),
        ("20", 7.0),
    ]


def test_rows_that_lack_a_label_of_their_family_have_it_empty() -> None:
    rows = [quantity for quantity in TABLES if any(view.stem == "temperature" for view in quantity.views)]
    bare = replace(rows[0], key="bare", views=(replace(rows[0].views[0], labels={}),))

    samples = Collector((*rows, bare)).collect(
        replace(
            SETTLED,
            windows={GPU_0: window(GPU_0, last={"bare": 50.0})},
            totals={},
            accounts=(),
            unattributed={},
            xids=(),
        )
    )

    assert [s.labels[2:] for s in samples if s.family == "gpu_temperature_celsius"] == [(("sensor", ""),)]


def test_the_real_tables_give_whole_series() -> None:
    last = {q.key + ("/1" if q.axis else ""): 1.0 for q in TABLES if q.kind is Kind.GAUGE}
    text = {q.key + ("/1" if q.axis else ""): "word" for q in TABLES if q.kind is Kind.TEXT}
    totals = {q.key + ("/1" if q.axis else ""): total(1.0) for q in TABLES}
    full = replace(
        SETTLED,
        windows={GPU_0: window(GPU_0, last=last, text=text)},
        totals={GPU_0: totals},
        unattributed={GPU_0: totals},
        extremes={GPU_0: dict.fromkeys(last, (0.0, 1.0))},
        accounts=(
            Account(
                holder=TRAIN,
                entity=GPU_0,
                basis="share",
                start_wall_ns=1,
                totals=dict.fromkeys(totals, 1.0),
                gauges=last,
            ),
        ),
    )
    collector = Collector(TABLES)

    samples = collector.collect(full)

    series_of(samples)
    assert [s for s in samples if tuple(name for name, _ in s.labels) != collector.families[s.family].labels] == []
    shown_families = {s.family for s in samples}
    hidden = {name for name in collector.families if name.startswith(("gpu_", "dra_"))} - shown_families
    assert hidden == set(health.FAMILIES)  # they come with the Snapshot, ready made


def test_no_series_stands_twice_and_families_are_contiguous() -> None:
    samples = Collector(QUANTITIES).collect(SNAPSHOT)

    series_of(samples)
    order = [sample.family for sample in samples]
    assert order == sorted(order, key=list(dict.fromkeys(order)).index)


def test_every_sample_carries_exactly_its_familys_labels() -> None:
    collector = Collector(QUANTITIES)

    odd = [
        sample
        for sample in collector.collect(SNAPSHOT)
        if tuple(name for name, _ in sample.labels) != collector.families[sample.family].labels
    ]

    assert odd == []


def test_label_tuples_are_the_same_objects_in_the_next_snapshot() -> None:
    collector = Collector(QUANTITIES)
    before = collector.collect(SETTLED)

    after = collector.collect(replace(SETTLED, wall_ns=WALL + 1_000_000_000))

    assert all(old.labels is new.labels for old, new in zip(before, after, strict=True))


def test_label_tuples_go_when_holders_and_entities_go() -> None:
    collector = Collector(QUANTITIES)
    for turn in range(50):
        holder = replace(TRAIN, name=f"job-{turn}")
        account = Account(holder=holder, entity=GPU_0, basis="exclusive", start_wall_ns=1, totals={"energy": 1.0})
        hold = Hold(holder=holder, entity=GPU_0)
        collector.collect(replace(SETTLED, accounts=(account,), holds=(hold,)))
    many = collector.cached

    collector.collect(Snapshot(node="n", wall_ns=WALL, monotonic_ns=0, inventory=None))

    assert many < 40
    assert collector.cached == 0


def test_two_rows_of_one_key_are_refused() -> None:
    with pytest.raises(ValueError, match="two quantities have the same key"):
        Collector((QUANTITIES[0], QUANTITIES[0]))


def test_families_hold_every_row_of_the_tables() -> None:
    names = {family.name for quantity in QUANTITIES for family in families(quantity)}

    assert names < set(Collector(QUANTITIES).families)
