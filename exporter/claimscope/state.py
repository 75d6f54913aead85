"""What must outlive the agent's process, and how is it kept on disk without ever being half written?

The journal is one JSON file, replaced as a whole: temporary file beside it, fsync, rename, fsync of the directory
(rename(2) is atomic; without the last fsync it may be undone by a power cut). Whoever reads it sees the old state
or the new one. `save` blocks on the disk: call it from a thread, with the copy that `Ledger.to_state` made.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec

from claimscope.model import Holder

if TYPE_CHECKING:
    from pathlib import Path

VERSION = 1
MAX_BYTES = 64 * 1024 * 1024  # far above eight GPUs with thousands of ended claims; a bound against a wrong file

Amount = Annotated[float, msgspec.Meta(ge=0)]
Parts = list[tuple[int, float]]  # (index into accounts, weight)


class JournalError(Exception):
    """The journal could not be read or written; the text says what, where and what to do. The agent goes on."""


class SumState(msgspec.Struct, frozen=True, kw_only=True):
    """A monotone sum and when it began."""

    value: Amount
    start_wall_ns: int
    start_value: Amount = 0.0  # at start_wall_ns


class CounterState(msgspec.Struct, frozen=True, kw_only=True):
    """The highest reading of a driver counter since it last began at 0, and where it was last read."""

    value: Amount
    at_ns: int
    session: int = 0  # 0: written before this was kept, so another run of the sampler than any that comes
    epoch: int = 0


class IntegralState(msgspec.Struct, frozen=True, kw_only=True):
    """The integral as it was last read, and which run of the sampler it belongs to."""

    value: float
    at_ns: int
    session: int
    epoch: int


class SpanState(msgspec.Struct, frozen=True, kw_only=True):
    """What a device did between two readings and that no poll has settled yet."""

    start_ns: int
    end_ns: int
    deltas: dict[str, Amount]
    busy: list[tuple[Holder, float]] = []
    busy_all: Amount = 0.0


class IntervalState(msgspec.Struct, frozen=True, kw_only=True):
    """Who held a device between two polls."""

    start_ns: int
    end_ns: int
    own: Parts = []
    whole: Parts = []


class DeviceState(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU or MIG device."""

    totals: dict[str, SumState] = {}
    unattributed: dict[str, SumState] = {}
    session: int = 0
    end_ns: int = 0
    counters: dict[str, CounterState] = {}
    integrals: dict[str, IntegralState] = {}
    pending: list[SpanState] = []
    intervals: list[IntervalState] = []
    present: bool = False  # was part of the last poll, with:
    counted: bool = False
    own: Parts = []
    whole: Parts = []


class AccountState(msgspec.Struct, frozen=True, kw_only=True):
    """One account."""

    holder: Holder
    entity: str
    basis: str
    start_wall_ns: int
    ended_wall_ns: int | None = None
    totals: dict[str, Amount] = {}


class XidState(msgspec.Struct, frozen=True, kw_only=True):
    """How often one XID was seen on one entity, when last, and how many wait for the next poll."""

    entity: str
    xid: int
    count: Annotated[int, msgspec.Meta(ge=0)]
    last_wall_ns: int
    pending: Annotated[int, msgspec.Meta(ge=0)] = 0


class JournalState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in the journal. Monotonic times mean something only under the same boot id."""

    version: int = VERSION
    boot_id: str = ""  # /proc/sys/kernel/random/boot_id; empty: unknown, never equal to another
    saved_wall_ns: int = 0
    saved_ns: int = 0
    polled_ns: int | None = None
    unobserved_seconds: Amount = 0.0
    accounts: list[AccountState] = []
    devices: dict[str, DeviceState] = {}
    xids: list[XidState] = []
    # Of health, which has types of its own: what cannot be read of it must not cost the accounts.
    health: msgspec.Raw = msgspec.Raw(b"null")


class _Version(msgspec.Struct, frozen=True):
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What `load` found: a state, nothing (both None: there is no journal yet), or an error."""

    state: JournalState | None = None
    error: JournalError | None = None


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def save(path: Path, state: JournalState) -> None:
    """Replaces the journal as a whole; on JournalError the former one still stands and nothing is left over."""
    temporary = path.with_name(path.name + ".tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    body = msgspec.json.encode(state)
    try:
        descriptor = os.open(temporary, flags, 0o600)
    except OSError as error:
        raise JournalError(
            f"cannot write the journal {path}: {_reason(error)}; make {path.parent} a directory that this process may "
            "write to, or give another state path; accounts restart from 0 with the agent until then"
        ) from error
    try:
        with open(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise JournalError(
            f"cannot write the journal {path}: {_reason(error)}; free space on its file system or make it writable; "
            "the journal written before stays in force until then"
        ) from error


def load(path: Path) -> Loaded:
    """Reads the journal. A file that makes no sense is moved aside to `<name>.corrupt-1`, never deleted."""
    try:
        with open(path, "rb") as file:
            body = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return Loaded()
    except OSError as error:
        return Loaded(
            error=JournalError(
                f"cannot read the journal {path}: {_reason(error)}; make it a file that this process may read; "
                "accounts start from 0"
            )
        )
    if len(body) > MAX_BYTES:
        return _set_aside(path, f"it is larger than {MAX_BYTES} bytes")
    try:
        version = msgspec.json.decode(body, type=_Version).version
        if version != VERSION:
            return _set_aside(path, f"it has version {version} and this agent reads version {VERSION}")
        return Loaded(state=msgspec.json.decode(body, type=JournalState))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _set_aside(path, str(error))


def _set_aside(path: Path, why: str) -> Loaded:
    aside = path.with_name(path.name + ".corrupt-1")
    try:
        os.replace(path, aside)
        where = f"it is kept as {aside}"
    except OSError as error:
        where = f"it could not be moved to {aside} ({_reason(error)}) and will be overwritten"
    return Loaded(
        error=JournalError(
            f"the journal {path} is not usable: {why}; {where}; accounts start from 0; "
            "to go on with the old ones, stop the agent, put back a journal of its version and start it again"
        )
    )
