"""Do the rows of the metric tables hold together, and do the families that follow obey the naming rules?"""

from __future__ import annotations

import re

import pytest

from claimscope.export.collect import Collector
from claimscope.metrics import identity, own, tables
from claimscope.metrics.spec import (
    CLAIM_LABELS,
    DEVICE_LABELS,
    Family,
    Kind,
    Quantity,
    Scope,
    Split,
    Stat,
    Tier,
    Type,
    Unit,
    Via,
    families,
    family_name,
)
from claimscope.nvml.calls import CALLS
from claimscope.nvml.fields import SYMBOLS, field_ids
from claimscope.nvml.gpm_metrics import GPM_METRICS

BY_QUANTITY = pytest.mark.parametrize("quantity", tables.QUANTITIES, ids=lambda quantity: quantity.key)
BY_FAMILY = pytest.mark.parametrize("family", tables.all_families().values(), ids=lambda family: family.name)


def names(key: str) -> tuple[str, ...]:
    return tuple(family.name for family in families(tables.by_key[key]))


def test_every_key_is_unique() -> None:
    assert len(tables.by_key) == len(tables.QUANTITIES)


@BY_QUANTITY
def test_every_read_resolves(quantity: Quantity) -> None:
    for read in quantity.reads:
        if read.via is Via.CALL:
            call = CALLS[read.name]
            assert (read.member or "value") in call.members
            # A call has an axis argument exactly where the quantity has an axis.
            assert (call.axis or call.axis_member is not None) is (quantity.axis is not None)
        elif read.via is Via.FIELD:
            assert read.name in SYMBOLS
            assert read.member is None
            assert quantity.axis is None or read.scope is None
        else:
            assert read.name in GPM_METRICS
            assert read.member is None
        assert read.scale > 0
        assert read.scope is None or read.via is Via.FIELD


@BY_QUANTITY
def test_rows_are_consistent(quantity: Quantity) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", quantity.key)
    assert "/" not in quantity.key
    assert (quantity.kind is Kind.TEXT) is (quantity.text_label is not None)
    assert quantity.reads or quantity.tier is Tier.EVENT or quantity.opt_in == "processes"
    assert quantity.opt_in in (None, "processes", "nvlink-per-link")
    for view in quantity.views:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", view.stem)
        assert view.otel is not None or view.stat in (Stat.MIN, Stat.MAX)
        assert view.dcgm is None or view.dcgm.startswith("DCGM_FI_")
        if quantity.kind is Kind.COUNTER and quantity.tier is not Tier.EVENT:
            assert view.stat is Stat.TOTAL
        if quantity.kind is Kind.TEXT:
            assert view.stat is Stat.LAST
            assert view.unit is Unit.ONE
        if quantity.kind is Kind.GAUGE and view.stat is Stat.TOTAL:
            assert view.unit is Unit.SECONDS  # time integral of a ratio or of a state


@BY_FAMILY
def test_names_obey_prometheus_rules(family: Family) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
    assert family.name.endswith("_total") is (family.type is Type.COUNTER)
    assert family.name.endswith("_info") is (family.type is Type.INFO)
    if family.unit.suffix:
        assert re.search(rf"_{family.unit.suffix}(_total)?$", family.name)
    assert not re.search(r"percent|milli|micro|kib|mib|mhz|watt_hours|minutes", family.name)
    assert not family.name.endswith(("_count", "_sum", "_bucket", "_created"))
    assert len(set(family.labels)) == len(family.labels)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in family.labels)
    assert not {"job", "instance", "le", "quantile", "node", "cluster"} & set(family.labels)


@BY_FAMILY
def test_help_is_one_line_that_ends_in_a_full_stop(family: Family) -> None:
    assert family.help.endswith(".")
    assert "\n" not in family.help
    assert "  " not in family.help


def test_every_family_of_a_stem_has_the_same_labels_so_that_no_series_lacks_one() -> None:
    seen: dict[str, Family] = {}
    for quantity in tables.QUANTITIES:
        for family in families(quantity):
            assert seen.setdefault(family.name, family) == family


def test_no_two_rows_make_the_same_series() -> None:
    series = [
        (family_name("gpu", view), tuple(sorted(view.labels.items())), quantity.axis)
        for quantity in tables.QUANTITIES
        for view in quantity.views
    ]
    assert len(set(series)) == len(series)


def test_merging_joins_labels_and_refuses_disagreement() -> None:
    first = Family(name="gpu_x", help="X.", type=Type.GAUGE, unit=Unit.ONE, labels=("uuid", "a"))
    second = Family(name="gpu_x", help="X.", type=Type.GAUGE, unit=Unit.ONE, labels=("uuid", "b"))
    other = Family(name="gpu_x", help="Y.", type=Type.GAUGE, unit=Unit.ONE, labels=("uuid", "a"))
    assert tables.merge([first, second])["gpu_x"].labels == ("uuid", "a", "b")
    with pytest.raises(tables.ConflictError, match="family gpu_x is described twice and differently"):
        tables.merge([first, other])


def test_the_collector_takes_the_tables() -> None:
    assert set(Collector(tables.QUANTITIES).families) == set(tables.all_families())


def test_identity_and_own_families_do_not_meet_those_of_quantities() -> None:
    assert not set(tables.quantity_families()) & (set(identity.FAMILIES) | set(own.FAMILIES))


def test_literal_names() -> None:
    assert names("utilization_gpu") == (
        "gpu_utilization_ratio",
        "gpu_busy_seconds_total",
        "dra_claim_gpu_busy_seconds_total",
        "pod_gpu_busy_seconds_total",
        "gpu_unattributed_busy_seconds_total",
        "gpu_utilization_min_ratio",
        "gpu_utilization_max_ratio",
    )
    assert names("energy") == (
        "gpu_energy_joules_total",
        "dra_claim_gpu_energy_joules_total",
        "pod_gpu_energy_joules_total",
        "gpu_unattributed_energy_joules_total",
    )
    assert names("memory_used") == (
        "gpu_memory_used_bytes",
        "dra_claim_gpu_memory_used_bytes",
        "pod_gpu_memory_used_bytes",
        "gpu_unattributed_memory_used_bytes",
    )
    assert names("power_instant") == ("gpu_power_watts", "gpu_power_min_watts", "gpu_power_max_watts")
    assert names("allocated_seconds") == (
        "dra_claim_gpu_allocated_seconds_total",
        "pod_gpu_allocated_seconds_total",
        "gpu_unattributed_allocated_seconds_total",
    )
    assert names("xid_errors") == (
        "gpu_xid_errors_total",
        "dra_claim_gpu_xid_errors_total",
        "pod_gpu_xid_errors_total",
        "gpu_unattributed_xid_errors_total",
        "gpu_xid_last_timestamp_seconds",
    )
    assert names("temperature_gpu") == ("gpu_temperature_celsius",)
    assert names("clock_sm") == ("gpu_clock_hertz",)
    assert names("nvlink_link_receive_bytes") == ("gpu_nvlink_link_receive_bytes_total",)
    assert names("recovery_action") == ("gpu_recovery_action",)


def test_literal_labels() -> None:
    made = tables.all_families()
    assert made["gpu_utilization_max_ratio"].labels == (*DEVICE_LABELS, "engine", "window")
    assert made["dra_claim_gpu_busy_seconds_total"].labels == (*CLAIM_LABELS, "engine")
    assert made["gpu_recovery_action"].labels == (*DEVICE_LABELS, "action")
    assert made["gpu_nvlink_remote"].labels == (*DEVICE_LABELS, "link", "remote")
    assert made["gpu_xid_errors_total"].labels == (*DEVICE_LABELS, "xid")


def test_what_is_split_and_how() -> None:
    split = {
        (quantity.key.partition("_")[0], view.split)
        for quantity in tables.QUANTITIES
        for view in quantity.views
        if view.split is not Split.NO
    }
    assert split == {
        ("utilization", Split.SHARE),
        ("memory", Split.OBSERVED),
        ("energy", Split.SHARE),
        ("throttle", Split.SHARE),
        ("pcie", Split.SHARE),
        ("nvlink", Split.SHARE),
        ("xid", Split.OBSERVED),
        ("allocated", Split.SHARE),
    }


def test_a_mig_device_is_not_given_what_only_its_gpu_has() -> None:
    parts = {quantity.key for quantity in tables.QUANTITIES if quantity.scope is not Scope.GPU}
    assert not {key for key in parts if key.startswith(("power", "energy", "clock", "temperature", "pcie", "nvlink"))}
    assert tables.by_key["memory_used"].scope is Scope.PART
    assert tables.by_key["utilization_gpu"].scope is Scope.LEAF
    assert tables.by_key["ecc_volatile_uncorrected_sram"].scope is Scope.PART
    assert tables.by_key["ecc_volatile_uncorrected_dram"].scope is Scope.GPU


def test_fast_tier_is_small_enough_for_one_field_batch() -> None:
    fields = [
        quantity.reads[0].name
        for quantity in tables.QUANTITIES
        if quantity.tier is Tier.TICK and quantity.reads[0].via is Via.FIELD
    ]
    assert fields == [
        "POWER_INSTANT",
        "TOTAL_ENERGY_CONSUMPTION",
        "ENERGY",
        "PERF_POLICY_POWER",
        "PERF_POLICY_SYNC_BOOST",
        "CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN",
        "CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",
        "CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
        "PERF_POLICY_BOARD_LIMIT",
        "PERF_POLICY_RELIABILITY",
        "MEMORY_TEMP",
        "PCIE_COUNT_TX_BYTES",
        "PCIE_COUNT_RX_BYTES",
        "NVLINK_THROUGHPUT_DATA_TX",
        "NVLINK_THROUGHPUT_DATA_RX",
    ]


def test_before_r575_software_thermal_slowdown_is_told_by_the_thermal_policy() -> None:
    known = field_ids("550.163.01")
    reads = [read.name for read in tables.by_key["throttle_sw_thermal"].reads if read.name in known]
    assert reads == ["PERF_POLICY_THERMAL"]
