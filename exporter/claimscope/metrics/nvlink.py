"""How do GPUs talk to each other: links, bytes, errors?

Two generations of counters: up to NVLink 4 data in KiB and errors of the data link layer, from NVLink 5 (Blackwell)
bytes, packet errors and recovery events. What a device does not answer is absent. For bytes the older counters are
asked first: nvml.h names no generation without them and they count payload only; the newer ones are NVLink 5's own.
"""

from __future__ import annotations

from claimscope.metrics.spec import Kind, Quantity, Read, Scope, Split, Stat, Tier, Unit, Via, View

ALL_LINKS = 0xFFFFFFFF  # scopeId: the sum over all links
PER_LINK = "nvlink-per-link"
_KIB = 1024.0


def _byte_reads(new: str, old: str, scope: int | None) -> tuple[Read, ...]:
    return (
        Read(via=Via.FIELD, name=old, scope=scope, scale=_KIB),
        Read(via=Via.FIELD, name=new, scope=scope),
    )


def _bytes(
    direction: str, verb: str, new: str, old: str, dcgm: str, dcgm_link: str
) -> tuple[Quantity, Quantity]:
    return (
        Quantity(
            key=f"nvlink_{direction}_bytes",
            reads=_byte_reads(new, old, ALL_LINKS),
            kind=Kind.COUNTER,
            tier=Tier.TICK,
            scope=Scope.GPU,
            views=(
                View(
                    stem=f"nvlink_{direction}",
                    help=f"Bytes {verb} over all NVLinks.",
                    stat=Stat.TOTAL,
                    unit=Unit.BYTES,
                    split=Split.SHARE,
                    otel="dra.device.nvlink.io",
                    otel_attributes={"network.io.direction": direction},
                    dcgm=dcgm,
                    dcgm_rate=True,
                ),
            ),
        ),
        Quantity(
            key=f"nvlink_link_{direction}_bytes",
            reads=_byte_reads(new, old, None),
            kind=Kind.COUNTER,
            tier=Tier.SLOW,
            scope=Scope.GPU,
            axis="link",
            opt_in=PER_LINK,
            views=(
                View(
                    stem=f"nvlink_link_{direction}",
                    help=f"Bytes {verb} over one NVLink.",
                    stat=Stat.TOTAL,
                    unit=Unit.BYTES,
                    otel="dra.device.nvlink.link.io",
                    otel_attributes={"network.io.direction": direction},
                    dcgm=dcgm_link,
                ),
            ),
        ),
    )


def _error(error: str, fields: tuple[str, ...], dcgm: str | None = None) -> Quantity:
    return Quantity(
        key=f"nvlink_errors_{error}",
        reads=tuple(Read(via=Via.FIELD, name=name, scope=ALL_LINKS) for name in fields),
        kind=Kind.COUNTER,
        tier=Tier.SECOND,
        scope=Scope.GPU,
        views=(
            View(
                stem="nvlink_errors",
                help="Errors on all NVLinks by type; one fault can count under several.",
                stat=Stat.TOTAL,
                unit=Unit.ONE,
                labels={"type": error},
                otel="hw.errors",
                otel_attributes={"error.type": f"nvlink_{error}", "hw.type": "gpu"},
                dcgm=dcgm,
            ),
        ),
    )


def _link_error(error: str, field: str) -> Quantity:
    return Quantity(
        key=f"nvlink_link_errors_{error}",
        reads=(Read(via=Via.FIELD, name=field),),
        kind=Kind.COUNTER,
        tier=Tier.SLOW,
        scope=Scope.GPU,
        axis="link",
        opt_in=PER_LINK,
        views=(
            View(
                stem="nvlink_link_errors",
                help="Errors on one NVLink by type; one fault can count under several.",
                stat=Stat.TOTAL,
                unit=Unit.ONE,
                labels={"type": error},
                otel="dra.device.nvlink.link.errors",
                otel_attributes={"error.type": f"nvlink_{error}"},
            ),
        ),
    )


def _recovery(result: str, field: str, dcgm: str) -> Quantity:
    return Quantity(
        key=f"nvlink_recoveries_{result}",
        reads=(Read(via=Via.FIELD, name=field, scope=ALL_LINKS),),
        kind=Kind.COUNTER,
        tier=Tier.SECOND,
        scope=Scope.GPU,
        views=(
            View(
                stem="nvlink_recoveries",
                help="Times an NVLink went into recovery, by how that ended.",
                stat=Stat.TOTAL,
                unit=Unit.ONE,
                labels={"result": result},
                otel="dra.device.nvlink.recoveries",
                otel_attributes={"dra.result": result},
                dcgm=dcgm,
            ),
        ),
    )


def _links(key: str, help_text: str, field: str) -> Quantity:
    return Quantity(
        key=key,
        reads=(Read(via=Via.FIELD, name=field),),
        kind=Kind.GAUGE,
        tier=Tier.RARE,
        scope=Scope.GPU,
        views=(
            View(
                stem=key, help=help_text, stat=Stat.LAST, unit=Unit.ONE, otel=f"dra.device.{key.replace('_', '.', 1)}"
            ),
        ),
    )


QUANTITIES: tuple[Quantity, ...] = (
    *_bytes(
        "transmit",
        "sent",
        "NVLINK_COUNT_XMIT_BYTES",
        "NVLINK_THROUGHPUT_DATA_TX",
        "DCGM_FI_PROF_NVLINK_TX_BYTES",
        "DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES",
    ),
    *_bytes(
        "receive",
        "received",
        "NVLINK_COUNT_RCV_BYTES",
        "NVLINK_THROUGHPUT_DATA_RX",
        "DCGM_FI_PROF_NVLINK_RX_BYTES",
        "DCGM_FI_DEV_NVLINK_COUNT_RX_BYTES",
    ),
    Quantity(
        key="nvlink_up",
        reads=(Read(via=Via.CALL, name="NvLinkState"),),
        kind=Kind.GAUGE,
        tier=Tier.SLOW,
        scope=Scope.GPU,
        axis="link",
        views=(
            View(
                stem="nvlink_up",
                help="1 while the NVLink is active.",
                stat=Stat.LAST,
                unit=Unit.ONE,
                otel="dra.device.nvlink.up",
            ),
        ),
    ),
    Quantity(
        key="nvlink_remote",
        reads=(Read(via=Via.CALL, name="NvLinkRemoteDeviceType"),),
        kind=Kind.TEXT,
        tier=Tier.RARE,
        scope=Scope.GPU,
        axis="link",
        text_label="remote",
        values={0: "gpu", 1: "npu", 2: "switch", 255: "unknown"},  # nvml.h, nvmlIntNvLinkDeviceType_t
        views=(
            View(
                stem="nvlink_remote",
                help="What is at the other end of the NVLink; always 1.",
                stat=Stat.LAST,
                unit=Unit.ONE,
                otel="dra.device.nvlink.remote",
            ),
        ),
    ),
    Quantity(
        key="nvlink_speed",
        reads=(Read(via=Via.FIELD, name="NVLINK_GET_SPEED", scale=1e6),),
        kind=Kind.GAUGE,
        tier=Tier.RARE,
        scope=Scope.GPU,
        axis="link",
        opt_in=PER_LINK,
        views=(
            View(
                stem="nvlink_speed_bytes_per_second",
                help="Bytes per second that the NVLink can carry.",
                stat=Stat.LAST,
                unit=Unit.ONE,
                otel="dra.device.nvlink.speed",
            ),
        ),
    ),
    _links("nvlink_links", "NVLinks of the device.", "NVLINK_LINK_COUNT"),
    _links("nvlink_switch_links", "NVLinks that lead to an NVSwitch.", "NVSWITCH_CONNECTED_LINK_COUNT"),
    # Up to NVLink 4.
    _error(
        "replay",
        ("NVLINK_REPLAY_ERROR_COUNT_TOTAL", "NVLINK_ERROR_DL_REPLAY"),
        "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL",
    ),
    _error(
        "recovery",
        ("NVLINK_RECOVERY_ERROR_COUNT_TOTAL", "NVLINK_ERROR_DL_RECOVERY"),
        "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL",
    ),
    _error(
        "crc_flit",
        ("NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "NVLINK_ERROR_DL_CRC"),
        "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL",
    ),
    _error("crc_data", ("NVLINK_CRC_DATA_ERROR_COUNT_TOTAL",), "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL"),
    _error("ecc_data", ("NVLINK_ECC_DATA_ERROR_COUNT_TOTAL",), "DCGM_FI_DEV_NVLINK_ECC_DATA_ERROR_COUNT_TOTAL"),
    # NVLink 5.
    _error(
        "malformed_packet",
        ("NVLINK_COUNT_MALFORMED_PACKET_ERRORS",),
        "DCGM_FI_DEV_NVLINK_COUNT_RX_MALFORMED_PACKET_ERRORS",
    ),
    _error(
        "buffer_overrun",
        ("NVLINK_COUNT_BUFFER_OVERRUN_ERRORS",),
        "DCGM_FI_DEV_NVLINK_COUNT_RX_BUFFER_OVERRUN_ERRORS",
    ),
    _error("receive", ("NVLINK_COUNT_RCV_ERRORS",), "DCGM_FI_DEV_NVLINK_COUNT_RX_ERRORS"),
    _error("receive_remote", ("NVLINK_COUNT_RCV_REMOTE_ERRORS",), "DCGM_FI_DEV_NVLINK_COUNT_RX_REMOTE_ERRORS"),
    _error("receive_general", ("NVLINK_COUNT_RCV_GENERAL_ERRORS",), "DCGM_FI_DEV_NVLINK_COUNT_RX_GENERAL_ERRORS"),
    _error(
        "local_link_integrity",
        ("NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS",),
        "DCGM_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS",
    ),
    _error("transmit_discard", ("NVLINK_COUNT_XMIT_DISCARDS",), "DCGM_FI_DEV_NVLINK_COUNT_TX_DISCARDS"),
    _error("effective", ("NVLINK_COUNT_EFFECTIVE_ERRORS",), "DCGM_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS"),
    _error("symbol", ("NVLINK_COUNT_SYMBOL_ERRORS",), "DCGM_FI_DEV_NVLINK_COUNT_RX_SYMBOL_ERRORS"),
    _recovery(
        "successful",
        "NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS",
        "DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS",
    ),
    _recovery(
        "failed",
        "NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS",
        "DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS",
    ),
    _link_error("replay", "NVLINK_ERROR_DL_REPLAY"),
    _link_error("recovery", "NVLINK_ERROR_DL_RECOVERY"),
    _link_error("crc_flit", "NVLINK_ERROR_DL_CRC"),
    _link_error("receive", "NVLINK_COUNT_RCV_ERRORS"),
    _link_error("transmit_discard", "NVLINK_COUNT_XMIT_DISCARDS"),
    _link_error("effective", "NVLINK_COUNT_EFFECTIVE_ERRORS"),
    _link_error("symbol", "NVLINK_COUNT_SYMBOL_ERRORS"),
)
