"""How does a GPU talk to its host: link, bytes, errors?

Bytes are counters of the driver (R555 and newer). nvmlDeviceGetPcieThroughput is not used: it blocks for 20 ms.
"""

from __future__ import annotations

from claimscope.metrics.spec import Kind, Quantity, Read, Scope, Split, Stat, Tier, Unit, Via, View


def _bytes(direction: str, help_text: str, field: str, dcgm: str) -> Quantity:
    return Quantity(
        key=f"pcie_{direction}_bytes",
        reads=(Read(via=Via.FIELD, name=field),),
        kind=Kind.COUNTER,
        tier=Tier.TICK,
        scope=Scope.GPU,
        views=(
            View(
                stem=f"pcie_{direction}",
                help=help_text,
                stat=Stat.TOTAL,
                unit=Unit.BYTES,
                split=Split.SHARE,
                otel="hw.gpu.io",
                otel_attributes={"network.io.direction": direction, "hw.type": "gpu"},
                dcgm=dcgm,
                dcgm_rate=True,
            ),
        ),
    )


def _link(key: str, help_text: str, call: str, dcgm: str) -> Quantity:
    return Quantity(
        key=key,
        reads=(Read(via=Via.CALL, name=call),),
        kind=Kind.GAUGE,
        tier=Tier.RARE,
        scope=Scope.GPU,
        views=(
            View(
                stem=key,
                help=help_text,
                stat=Stat.LAST,
                unit=Unit.ONE,
                otel=f"dra.device.{key.replace('_', '.', 1)}",
                dcgm=dcgm,
            ),
        ),
    )


def _count(key: str, help_text: str, reads: tuple[Read, ...], dcgm: str | None = None) -> Quantity:
    return Quantity(
        key=key,
        reads=reads,
        kind=Kind.COUNTER,
        tier=Tier.SECOND,
        scope=Scope.GPU,
        views=(
            View(
                stem=key,
                help=help_text,
                stat=Stat.TOTAL,
                unit=Unit.ONE,
                otel="hw.errors",
                otel_attributes={"error.type": key, "hw.type": "gpu"},
                dcgm=dcgm,
            ),
        ),
    )


def _error(error: str, field: str, dcgm: str | None = None) -> Quantity:
    return Quantity(
        key=f"pcie_errors_{error}",
        reads=(Read(via=Via.FIELD, name=field),),
        kind=Kind.COUNTER,
        tier=Tier.SECOND,
        scope=Scope.GPU,
        views=(
            View(
                stem="pcie_errors",
                help="PCIe errors by type; one fault can count under several.",
                stat=Stat.TOTAL,
                unit=Unit.ONE,
                labels={"type": error},
                otel="hw.errors",
                otel_attributes={"error.type": f"pcie_{error}", "hw.type": "gpu"},
                dcgm=dcgm,
            ),
        ),
    )


QUANTITIES: tuple[Quantity, ...] = (
    _bytes("transmit", "Bytes sent over PCIe.", "PCIE_COUNT_TX_BYTES", "DCGM_FI_PROF_PCIE_TX_BYTES"),
    _bytes("receive", "Bytes received over PCIe.", "PCIE_COUNT_RX_BYTES", "DCGM_FI_PROF_PCIE_RX_BYTES"),
    _link(
        "pcie_link_generation",
        "PCIe generation of the link now; an idle device may lower it.",
        "CurrPcieLinkGeneration",
        "DCGM_FI_DEV_PCIE_LINK_GEN",
    ),
    _link(
        "pcie_link_generation_max",
        "Highest PCIe generation that device and slot allow.",
        "MaxPcieLinkGeneration",
        "DCGM_FI_DEV_PCIE_MAX_LINK_GEN",
    ),
    _link("pcie_link_width", "PCIe lanes in use.", "CurrPcieLinkWidth", "DCGM_FI_DEV_PCIE_LINK_WIDTH"),
    _link(
        "pcie_link_width_max",
        "Most PCIe lanes that device and slot allow.",
        "MaxPcieLinkWidth",
        "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH",
    ),
    _count(
        "pcie_replays",
        "PCIe packets that had to be sent again.",
        (Read(via=Via.FIELD, name="PCIE_REPLAY_COUNTER"), Read(via=Via.CALL, name="PcieReplayCounter")),
        "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
    ),
    _count(
        "pcie_recoveries",
        "Times the PCIe link went from L0 to recovery.",
        (Read(via=Via.FIELD, name="PCIE_L0_TO_RECOVERY_COUNTER"),),
    ),
    _error("replay_rollover", "PCIE_REPLAY_ROLLOVER_COUNTER"),
    _error("correctable", "PCIE_COUNT_CORRECTABLE_ERRORS", "DCGM_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS"),
    _error("nak_received", "PCIE_COUNT_NAKS_RECEIVED"),
    _error("nak_sent", "PCIE_COUNT_NAKS_SENT"),
    _error("receiver", "PCIE_COUNT_RECEIVER_ERROR"),
    _error("bad_tlp", "PCIE_COUNT_BAD_TLP"),
    _error("bad_dllp", "PCIE_COUNT_BAD_DLLP"),
    _error("non_fatal", "PCIE_COUNT_NON_FATAL_ERROR"),
    _error("fatal", "PCIE_COUNT_FATAL_ERROR"),
    _error("unsupported_request", "PCIE_COUNT_UNSUPPORTED_REQ"),
    _error("lcrc", "PCIE_COUNT_LCRC_ERROR"),
    _error("lane", "PCIE_COUNT_LANE_ERROR"),
)
