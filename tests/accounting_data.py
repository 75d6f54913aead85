"""Small tables and builders for the tests of accounts. Times are seconds; quantities are written as keywords."""

from __future__ import annotations

import msgspec

from claimscope.accounting.ledger import Ledger
from claimscope.metrics.spec import Kind, Quantity, Scope, Split, Stat, Tier, Unit, View
from claimscope.model import Account, Device, Entity, Hold, Holder, Inventory, ProcessUse, Window
from claimscope.state import JournalState

S = 1_000_000_000
WALL = 1_700_000_000 * S
GPU, MIG_GPU, LEAF_A, LEAF_B = "GPU-1", "GPU-M", "MIG-A", "MIG-B"


def view(stem: str, stat: Stat, split: Split = Split.NO, unit: Unit = Unit.ONE) -> View:
    return View(stem=stem, help="A test.", stat=stat, unit=unit, split=split)


def quantity(key: str, kind: Kind, scope: Scope, *views: View, axis: str | None = None) -> Quantity:
    return Quantity(key=key, reads=(), kind=kind, tier=Tier.TICK, scope=scope, views=views, axis=axis)


QUANTITIES = (
    quantity("energy", Kind.COUNTER, Scope.GPU, view("energy", Stat.TOTAL, Split.SHARE, Unit.JOULES)),
    quantity(
        "busy",
        Kind.GAUGE,
        Scope.LEAF,
        view("utilization", Stat.LAST, Split.NO, Unit.RATIO),
        view("utilization", Stat.MIN, Split.NO, Unit.RATIO),
        view("busy", Stat.TOTAL, Split.OBSERVED, Unit.SECONDS),
    ),
    quantity("memory", Kind.GAUGE, Scope.PART, view("memory_used", Stat.LAST, Split.OBSERVED, Unit.BYTES)),
    quantity(
        "power",
        Kind.GAUGE,
        Scope.GPU,
        view("power", Stat.LAST, Split.SHARE, Unit.WATTS),
        view("power", Stat.MAX, Split.NO, Unit.WATTS),
    ),
    quantity(
        "link", Kind.COUNTER, Scope.GPU, view("link", Stat.TOTAL, Split.OBSERVED, Unit.BYTES), axis="link"
    ),
    quantity("leaf_bytes", Kind.COUNTER, Scope.LEAF, view("bytes", Stat.TOTAL, Split.SHARE, Unit.BYTES)),
    quantity("ecc", Kind.COUNTER, Scope.GPU, view("ecc", Stat.TOTAL)),
)


def _inventory(*entities: Entity) -> Inventory:
    devices = tuple(Device(entity=entity, minor=None, pci_bus_id=None, model=None) for entity in entities)
    return Inventory(
        session=0, epoch=0, driver_version=None, nvml_version=None, cuda_version=None, devices=devices
    )


MIG_ENTITIES = (
    Entity(uuid=MIG_GPU, gpu=1),
    Entity(uuid=LEAF_A, parent=MIG_GPU, gpu=1, slices=3, total_slices=7),
    Entity(uuid=LEAF_B, parent=MIG_GPU, gpu=1, slices=2, total_slices=7),
)
INVENTORY = _inventory(Entity(uuid=GPU, gpu=0), Entity(uuid="GPU-2", gpu=2))
MIG_INVENTORY = _inventory(*MIG_ENTITIES)
ALL_INVENTORY = _inventory(Entity(uuid=GPU, gpu=0), *MIG_ENTITIES)


def claim(name: str, uid: str | None = None) -> Holder:
    return Holder(source="claim", namespace="ml", name=name, uid=uid or f"uid-{name}")


def pod(name: str) -> Holder:
    return Holder(source="pod", namespace="ml", name=name, container="main")


def exclusive(holder: Holder, entity: str) -> Hold:
    return Hold(holder=holder, entity=entity)


def share(holder: Holder, entity: str, part: float) -> Hold:
    return Hold(holder=holder, entity=entity, share=part, basis="share")


def window(
    entity: str,
    start: float,
    end: float,
    *,
    session: float = 0,
    epoch: int = 0,
    last: dict[str, float] | None = None,
    raw: dict[str, float] | None = None,
    processes: tuple[ProcessUse, ...] | None = None,
    **values: float,
) -> Window:
    return Window(
        entity=entity,
        session=int(session * S),
        epoch=epoch,
        start_ns=int(start * S),
        end_ns=int(end * S),
        end_wall_ns=WALL + int(end * S),
        ticks=10,
        last=last or {},
        raw=raw if raw is not None else {key: value for key, value in values.items() if key != "busy"},
        integral={key: value for key, value in values.items() if key == "busy"},
        processes=processes,
    )


class Driver:
    """A ledger and the few steps that the tests repeat."""

    def __init__(self, inventory: Inventory = INVENTORY) -> None:
        self.known = inventory
        self.ledger = Ledger(QUANTITIES)
        self.ledger.inventory(inventory)
        self.now = 0.0

    def hold(self, at: float, *holds: Hold) -> None:
        self.now = at
        self.ledger.hold(holds, int(at * S), WALL + int(at * S))

    def observe(self, seen: Window) -> None:
        self.ledger.observe(seen)

    def restart(self, *, saved: float, now: float, boot_id: str = "boot", wall_seconds: float | None = None) -> None:
        """Through the journal's bytes, as the agent does."""
        body = msgspec.json.encode(self.ledger.to_state("boot", int(saved * S), WALL + int(saved * S)))
        wall = saved + (now - saved if wall_seconds is None else wall_seconds)
        self.ledger = Ledger.from_state(
            QUANTITIES,
            msgspec.json.decode(body, type=JournalState),
            boot_id=boot_id,
            now_ns=int(now * S),
            wall_ns=WALL + int(wall * S),
        )
        self.ledger.inventory(self.known)
        self.now = now

    def total(self, entity: str, key: str) -> float:
        return self.ledger.totals()[entity][key].value

    def account(self, holder: Holder, at: float | None = None) -> Account:
        found = [a for a in self.ledger.accounts(int((self.now if at is None else at) * S)) if a.holder == holder]
        assert len(found) == 1
        return found[0]

    def gauges(self, holder: Holder, at: float | None = None) -> dict[str, float]:
        return dict(self.account(holder, at).gauges)


def used(ledger: Ledger, holder: Holder) -> dict[str, float]:
    """The totals of the one account of a holder; rounded, since thirds of joules are not exact."""
    (account,) = [account for account in ledger.accounts(0) if account.holder == holder]
    return {key: round(value, 9) for key, value in account.totals.items()}


def rest(ledger: Ledger, entity: str) -> dict[str, float]:
    return {key: round(total.value, 9) for key, total in ledger.unattributed().get(entity, {}).items()}
