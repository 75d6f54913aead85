"""Whatever is lost, late, restarted or reset: holders plus the unattributed rest equal what the device counted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting_data import (
    ALL_INVENTORY,
    GPU,
    LEAF_A,
    LEAF_B,
    MIG_GPU,
    QUANTITIES,
    WALL,
    Driver,
    S,
    claim,
    pod,
)
from claimscope.accounting.books import ALLOCATED_SECONDS, EXCLUSIVE
from claimscope.accounting.ledger import Ledger
from claimscope.model import Event, Hold, Holder, ProcessUse, Window
from claimscope.state import JournalState

HOLDERS = (claim("a"), claim("a", uid="another"), claim("b"), pod("a"))
OWNERS = dict(enumerate(HOLDERS))
KEYS = {
    GPU: ("energy", "link/0", "leaf_bytes", "busy"),
    MIG_GPU: ("energy",),
    LEAF_A: ("leaf_bytes", "busy"),
    LEAF_B: ("leaf_bytes", "busy"),
}
LEAVES = (GPU, LEAF_A, LEAF_B)
PARENT = {LEAF_A: MIG_GPU, LEAF_B: MIG_GPU}


@dataclass
class Machine:
    """A node whose devices count, an agent on it, and what the agent should come to."""

    driver: Driver = field(default_factory=lambda: Driver(ALL_INVENTORY))
    now_ns: int = 0
    boot: int = 0
    session: int = 0
    epochs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))
    counters: dict[tuple[str, str], float] = field(default_factory=dict)
    start_ns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))
    growth: dict[tuple[str, str], float] = field(default_factory=dict)
    worked: dict[tuple[str, str], float] = field(default_factory=dict)  # what the devices truly counted
    polled_ns: int | None = None
    timed_ns: int = 0
    xids: int = 0
    seen: dict[tuple[object, ...], dict[str, float]] = field(default_factory=dict)
    rests: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def ledger(self) -> Ledger:
        return self.driver.ledger

    @property
    def wall_ns(self) -> int:
        return WALL + self.now_ns

    def observe(self, entity: str, amounts: list[float], busy: list[float], lost: bool) -> None:
        keys = KEYS[entity]
        for key, amount in zip(keys, amounts, strict=False):
            self.counters[entity, key] = self.counters.get((entity, key), 0.0) + amount
            self.worked[entity, key] = self.worked.get((entity, key), 0.0) + amount
        window = Window(
            entity=entity,
            session=self.session,
            epoch=self.epochs[entity],
            start_ns=self.start_ns[entity],
            end_ns=self.now_ns,
            end_wall_ns=self.wall_ns,
            ticks=1,
            raw={key: self.counters[entity, key] for key in keys if key != "busy"},
            integral={key: self.counters[entity, key] for key in keys if key == "busy"},
            processes=tuple(ProcessUse(pid=pid, busy_ratio=ratio) for pid, ratio in enumerate(busy)) or None,
        )
        self.start_ns[entity] = self.now_ns
        if lost or window.end_ns <= window.start_ns:
            return
        before = self.ledger.totals().get(entity, {})
        self.ledger.observe(window, OWNERS)
        for key, total in self.ledger.totals().get(entity, {}).items():
            if key in before:
                self.grow(entity, key, total.value - before[key].value)
            else:
                self.grow(entity, key, total.value if key == "busy" else 0.0)

    def grow(self, entity: str, key: str, amount: float) -> None:
        assert amount >= 0.0
        self.growth[entity, key] = self.growth.get((entity, key), 0.0) + amount

    def reset(self, entity: str) -> None:
        self.epochs[entity] += 1
        for key in KEYS[entity]:
            self.counters[entity, key] = 0.0

    def step_back(self, entity: str) -> None:
        for key in KEYS[entity]:
            if key != "busy":
                self.counters[entity, key] = self.counters.get((entity, key), 0.0) * 0.999

    def restart_sampler(self) -> None:
        self.session = self.now_ns
        self.epochs = dict.fromkeys(KEYS, 0)
        for entity, key in self.counters:
            if key == "busy":
                self.counters[entity, key] = 0.0
        self.start_ns = dict.fromkeys(KEYS, self.now_ns)

    def restart_agent(self, reboot: bool) -> None:
        body = msgspec.json.encode(self.ledger.to_state(f"boot {self.boot}", self.now_ns, self.wall_ns))
        self.boot += reboot
        self.now_ns += S
        self.driver.ledger = Ledger.from_state(
            QUANTITIES,
            msgspec.json.decode(body, type=JournalState),
            boot_id=f"boot {self.boot}",
            now_ns=self.now_ns,
            wall_ns=self.wall_ns,
        )
        self.ledger.inventory(ALL_INVENTORY)
        self.restart_sampler()
        if reboot:
            self.polled_ns = None
            self.counters = dict.fromkeys(self.counters, 0.0)

    def poll(self, holds: list[Hold], late_ns: int) -> None:
        at_ns = self.now_ns - late_ns
        if self.polled_ns is not None and at_ns > self.polled_ns:
            self.timed_ns += at_ns - self.polled_ns
        if self.polled_ns is None or at_ns > self.polled_ns:
            self.polled_ns = at_ns
        self.ledger.hold(holds, at_ns, self.wall_ns)

    def event(self, entity: str) -> None:
        self.xids += 1
        self.ledger.event(Event(entity=entity, kind="xid", code=13, wall_ns=self.wall_ns))

    def check_monotone(self) -> None:
        for account in self.ledger.accounts(self.now_ns if self.polled_ns is None else self.polled_ns):
            former = self.seen.get((account.holder, account.entity, account.basis, account.start_wall_ns), {})
            for key, value in account.totals.items():
                assert value >= former.get(key, 0.0)
            assert former.keys() <= account.totals.keys()
            self.seen[account.holder, account.entity, account.basis, account.start_wall_ns] = dict(account.totals)
        for entity, sums in self.ledger.unattributed().items():
            for key, rest in sums.items():
                assert rest.value >= self.rests.get((entity, key), 0.0)
                self.rests[entity, key] = rest.value

    def check_conserved(self) -> None:
        given: dict[tuple[str, str], float] = {}
        for (_, entity, _, _), totals in self.seen.items():
            assert isinstance(entity, str)
            for key, value in totals.items():
                device = PARENT.get(entity, entity) if key == "energy" else entity
                given[device, key] = given.get((device, key), 0.0) + value
        for (entity, key), growth in self.growth.items():
            accounted = given.get((entity, key), 0.0) + self.rests.get((entity, key), 0.0)
            assert math.isclose(accounted, growth, rel_tol=1e-9, abs_tol=1e-9), (entity, key)
            assert growth <= self.worked[entity, key] * (1.0 + 1e-9) + 1e-6, (entity, key)
        for entity in LEAVES:
            seconds = given.get((entity, ALLOCATED_SECONDS), 0.0) + self.rests.get((entity, ALLOCATED_SECONDS), 0.0)
            assert math.isclose(seconds, self.timed_ns / 1e9, rel_tol=1e-9, abs_tol=1e-9), entity
        counted = [*given.items(), *self.rests.items()]
        xids = sum(value for (_, key), value in counted if key == "xid_errors/13")
        assert xids == self.xids == sum(count.count for count in self.ledger.xids())


holder = st.sampled_from(HOLDERS)


@st.composite
def hold_sets(draw: st.DrawFn) -> list[Hold]:
    made: list[Hold] = []
    for entity in LEAVES:
        those: list[Holder] = draw(st.lists(holder, max_size=3, unique=True))
        if len(those) == 1 and draw(st.booleans()):
            made.append(Hold(holder=those[0], entity=entity, basis=EXCLUSIVE))
        else:  # now and then more than there is
            part = draw(st.sampled_from((0.1, 0.25, 0.5)))
            made.extend(Hold(holder=one, entity=entity, share=part, basis="share") for one in those)
    return made


@dataclass(frozen=True, kw_only=True)
class Round:
    """About one second of a node's life."""

    pause_ns: int
    grown: float
    busy: list[float]
    lost: set[str]
    trouble: tuple[str, ...]
    poll: str  # "same", "changed" or "failed"
    holds: list[Hold]
    late_ns: int


troubles = st.one_of(
    st.just(("none",)),
    st.tuples(st.just("event"), st.sampled_from(tuple(KEYS))),
    st.tuples(st.just("reset"), st.sampled_from(tuple(KEYS))),
    st.tuples(st.just("step back"), st.sampled_from(tuple(KEYS))),
    st.just(("sampler",)),
    st.just(("agent",)),
    st.just(("reboot",)),
    st.just(("away",)),
)
rounds = st.builds(
    Round,
    pause_ns=st.integers(0, 2 * S),
    grown=st.floats(0.0, 1e6),
    busy=st.lists(st.floats(0.0, 1.0), max_size=len(HOLDERS) + 1),
    lost=st.sets(st.sampled_from(tuple(KEYS)), max_size=2),
    trouble=troubles,
    poll=st.sampled_from(("same", "same", "changed", "failed")),
    holds=hold_sets(),
    late_ns=st.integers(0, 2 * S),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(hold_sets(), st.lists(rounds, min_size=6, max_size=20))
def test_holders_and_the_rest_equal_the_device(holds: list[Hold], life: list[Round]) -> None:
    machine = Machine()
    machine.poll(holds, 0)
    for second in life:
        machine.now_ns += second.pause_ns
        for place, entity in enumerate(KEYS, start=1):
            amounts = [second.grown * place * number for number in range(1, 5)]
            machine.observe(entity, amounts, second.busy, entity in second.lost)
        match second.trouble:
            case ("event", entity):
                machine.event(entity)
            case ("reset", entity):
                machine.reset(entity)
            case ("step back", entity):
                machine.step_back(entity)
            case ("sampler",):
                machine.restart_sampler()
            case ("agent",):
                machine.restart_agent(reboot=False)
            case ("reboot",):
                machine.restart_agent(reboot=True)
            case ("away",):
                machine.now_ns += 400 * S
        if second.poll == "changed":
            holds = second.holds
        if second.poll != "failed":
            machine.poll(holds, second.late_ns)
        machine.check_monotone()
    machine.now_ns += 3 * S
    machine.poll(holds, 0)
    machine.check_monotone()
    machine.check_conserved()
