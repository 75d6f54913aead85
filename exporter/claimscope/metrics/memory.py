"""How much memory is there and how much of it is taken: framebuffer, BAR1 window, processes?

Also for each MIG device. Used memory is split only by what processes are seen to hold, never by declared share.
"""

from __future__ import annotations

from claimscope.metrics.spec import Kind, Quantity, Read, Scope, Split, Stat, Tier, Unit, Via, View

_MIB = 1.0 / (1 << 20)  # bytes x this = MiB, which DCGM shows


def _memory(member: str, help_text: str, otel: str, split: Split = Split.NO) -> Quantity:
    return Quantity(
        key=f"memory_{member}",
        reads=(Read(via=Via.CALL, name="MemoryInfo_v2", member=member),),
        kind=Kind.GAUGE,
        tier=Tier.SECOND,
        scope=Scope.PART,
        views=(
            View(
                stem=f"memory_{member}",
                help=help_text,
                stat=Stat.LAST,
                unit=Unit.BYTES,
                split=split,
                otel=otel,
                dcgm=f"DCGM_FI_DEV_FB_{member.upper()}",
                dcgm_scale=_MIB,
            ),
        ),
    )


def _bar1(member: str, help_text: str) -> Quantity:
    return Quantity(
        key=f"bar1_memory_{member}",
        reads=(Read(via=Via.CALL, name="BAR1MemoryInfo", member=member),),
        kind=Kind.GAUGE,
        tier=Tier.SLOW,
        scope=Scope.PART,
        views=(
            View(
                stem=f"bar1_memory_{member}",
                help=help_text,
                stat=Stat.LAST,
                unit=Unit.BYTES,
                otel=f"dra.device.bar1.memory.{member}",
                dcgm=f"DCGM_FI_DEV_BAR1_{member.upper()}",
                dcgm_scale=_MIB,
            ),
        ),
    )


QUANTITIES: tuple[Quantity, ...] = (
    _memory("total", "Framebuffer memory of the device.", "hw.gpu.memory.limit"),
    _memory(
        "used",
        "Framebuffer memory that is allocated, without what the driver reserves.",
        "hw.gpu.memory.usage",
        Split.OBSERVED,
    ),
    _memory(
        "reserved", "Framebuffer memory that driver and firmware keep for themselves.", "dra.device.memory.reserved"
    ),
    _memory("free", "Framebuffer memory that is neither used nor reserved.", "dra.device.memory.free"),
    _bar1("total", "Size of the BAR1 window through which the CPU and peers reach the device's memory."),
    _bar1("used", "Part of the BAR1 window that is mapped."),
    _bar1("free", "Part of the BAR1 window that is not mapped."),
    # Read by process list, which is no plain getter: the sampler fills it in.
    Quantity(
        key="process_memory_used",
        reads=(),
        kind=Kind.GAUGE,
        tier=Tier.SLOW,
        scope=Scope.LEAF,
        axis="pid",
        opt_in="processes",
        views=(
            View(
                stem="process_memory_used",
                help="Framebuffer memory that one process holds.",
                stat=Stat.LAST,
                unit=Unit.BYTES,
                otel="dra.device.process.memory.usage",
            ),
        ),
    ),
)
