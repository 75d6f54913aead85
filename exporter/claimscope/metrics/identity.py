"""Which devices are there, do they answer, and who holds them? The families that tell it, as data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from claimscope.metrics.spec import DEVICE_LABELS, Family, Type, Unit

_ROWS = (
    Family(
        name="gpu_info",
        help="Identity of a GPU or MIG device; what it does not have is empty.",
        type=Type.INFO,
        unit=Unit.ONE,
        labels=(
            *DEVICE_LABELS,
            "parent_uuid",
            "model",
            "mode",
            "mig_profile",
            "mig_enabled",
            "gpu_instance_id",
            "compute_instance_id",
            "pci_bus_id",
            "minor",
            "architecture",
            "compute_capability",
            "serial",
            "board_part_number",
            "vbios_version",
            "inforom_version",
            "gsp_firmware_version",
            "driver_version",
            "nvml_version",
            "cuda_version",
        ),
        otel="dra.device.info",
    ),
    Family(
        name="gpu_up",
        help="1 while the device answers and its readings are fresh.",
        type=Type.GAUGE,
        unit=Unit.ONE,
        labels=DEVICE_LABELS,
        otel="dra.device.up",
    ),
    Family(
        name="gpu_size_ratio",
        help="Part of a whole GPU that the device is: 1, and of a MIG device its compute slices of those of its GPU.",
        type=Type.GAUGE,
        unit=Unit.RATIO,
        labels=DEVICE_LABELS,
        otel="dra.device.size",
    ),
    Family(
        name="gpu_allocation_info",
        help="Which container of which pod holds the device, and through which ResourceClaim or device plugin.",
        type=Type.INFO,
        unit=Unit.ONE,
        labels=(
            "uuid",
            "source",
            "namespace",
            "resourceclaim",
            "claim_uid",
            "request",
            "pod",
            "container",
            "driver",
            "pool",
            "device",
            "resource",
            "share_id",
        ),
        otel="dra.device.allocation.info",
    ),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({row.name: row for row in _ROWS})
