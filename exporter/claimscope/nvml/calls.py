"""The NVML getters we use, as a table: symbol, arguments and where the numbers are in the answer.

The sampler compiles each row into one pre-bound ctypes call with reused output buffers; nothing here calls NVML.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COutput = type[ctypes.Structure] | type["ctypes._SimpleCData[Any]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One C function `nvmlReturn_t symbol(handle, args..., [axis], out*...)`."""

    symbol: str
    outs: tuple[COutput, ...]  # one per output pointer, in order
    args: tuple[int, ...] = ()  # constant unsigned ints between the handle and the outputs
    axis: bool = False  # the axis value (fan, link) is one more unsigned int behind args
    version: int | None = None  # written into outs[0].version before each call
    # member -> (index into outs, attribute of the structure; None for a plain number)
    members: Mapping[str, tuple[int, str | None]] = field(default_factory=lambda: {"value": (0, None)})
