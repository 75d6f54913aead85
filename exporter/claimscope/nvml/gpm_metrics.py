"""Which number does a GPM metric have?

Ids of nvmlGpmMetricId_t in nvml.h; unlike field ids they have only ever been added to. Ids up to 97 are known to every
driver that has GPM (the metrics array had 98 entries up to CUDA 12.8).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

GPM_METRICS: Mapping[str, int] = MappingProxyType(
    {
        # Percent, 0 to 100.
        "GRAPHICS_UTIL": 1,
        "SM_UTIL": 2,
        "SM_OCCUPANCY": 3,
        "INTEGER_UTIL": 4,
        "ANY_TENSOR_UTIL": 5,
        "DFMA_TENSOR_UTIL": 6,
        "HMMA_TENSOR_UTIL": 7,
        "IMMA_TENSOR_UTIL": 9,
        "DRAM_BW_UTIL": 10,
        "FP64_UTIL": 11,
        "FP32_UTIL": 12,
        "FP16_UTIL": 13,
        # MiB per second.
        "PCIE_TX_PER_SEC": 20,
        "PCIE_RX_PER_SEC": 21,
        "NVLINK_TOTAL_RX_PER_SEC": 60,
        "NVLINK_TOTAL_TX_PER_SEC": 61,
    }
)
