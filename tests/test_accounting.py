"""Accounts by example: input, act, literal output."""

from __future__ import annotations

import dataclasses

import msgspec

from accounting_data import (
    GPU,
    INVENTORY,
    LEAF_A,
    LEAF_B,
    MIG_GPU,
    MIG_INVENTORY,
    QUANTITIES,
    WALL,
    Driver,
    S,
    claim,
    exclusive,
    pod,
    rest,
    share,
    used,
    window,
)
from claimscope.accounting.counting import increase
from claimscope.accounting.ledger import Ledger
from claimscope.accounting.splitting import own_weights, whole_weights
from claimscope.accounting.xids import MAX_PENDING_XIDS
from claimscope.model import Entity, Event, Hold, Inventory, ProcessUse
from claimscope.state import CounterState

A, B = claim("a"), claim("b")


def test_a_counter_that_restarts_counts_from_zero() -> None:
    assert increase(100.0, 130.0) == (30.0, 130.0)
    assert increase(100.0, 7.0) == (7.0, 7.0)
    assert increase(100.0, 0.0) == (0.0, 0.0)


def test_a_counter_that_steps_back_a_little_did_not_restart() -> None:
    assert increase(100.0, 99.0) == (0.0, 100.0)
    assert increase(100.0, 50.0) == (50.0, 50.0)
    assert increase(100.0, 99.0, renewed=True) == (99.0, 99.0)
    assert increase(100.0, 101.0, renewed=True) == (1.0, 101.0)


def test_shares_above_one_are_scaled_down() -> None:
    assert own_weights([share(A, GPU, 1.0), share(B, GPU, 1.0)]) == {
        (A, GPU, "share"): 0.5,
        (B, GPU, "share"): 0.5,
    }


def test_a_mig_device_weighs_its_slices_of_the_gpu() -> None:
    leaf = Entity(uuid=LEAF_A, parent=MIG_GPU, gpu=1, slices=2, total_slices=7)
    unknown = Entity(uuid=LEAF_B, parent=MIG_GPU, gpu=1)

    weights = whole_weights(
        {}, [(leaf, {(A, LEAF_A, "share"): 0.5}), (unknown, {(B, LEAF_B, "exclusive"): 1.0})]
    )

    assert weights == {(A, LEAF_A, "share"): 1 / 7}


def test_an_exclusive_holder_gets_everything_and_nothing_from_before() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.observe(window(GPU, 0, 1, energy=1000.0, busy=0.2))
    driver.hold(1, exclusive(A, GPU))
    driver.observe(window(GPU, 1, 2, energy=1300.0, busy=1.1))
    driver.hold(2, exclusive(A, GPU))

    assert driver.total(GPU, "energy") == 1300.0  # the device's own, from before too
    assert used(driver.ledger, A) == {"allocated_seconds": 2.0, "energy": 300.0, "busy": 1.1}
    assert rest(driver.ledger, GPU) == {"allocated_seconds": 0.0, "energy": 0.0, "busy": 0.0}


def test_what_a_counter_had_before_it_was_followed_is_known_and_outlives_the_agent() -> None:
    driver = Driver()
    driver.observe(window(GPU, 0, 1, energy=5e9, busy=0.2))  # years of joules
    driver.observe(window(GPU, 1, 2, energy=5e9 + 700, busy=0.9))

    def began() -> tuple[float, float, int]:
        total = driver.ledger.totals()[GPU]["energy"]
        return total.start_value, total.value, total.start_wall_ns

    assert began() == (5e9, 5e9 + 700, WALL + S)
    assert driver.ledger.totals()[GPU]["busy"].start_value == 0.0  # counted by the sampler, from its beginning on
    driver.restart(saved=2, now=12)
    driver.observe(window(GPU, 12, 13, session=12, energy=5e9 + 900))
    assert began() == (5e9, 5e9 + 900, WALL + S)


def test_the_poll_in_which_the_holder_changed_is_nobodys() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.observe(window(GPU, 0, 1, energy=0.0))
    driver.hold(1, exclusive(A, GPU))
    driver.hold(2, exclusive(B, GPU))
    driver.hold(4, exclusive(B, GPU))
    driver.observe(window(GPU, 3, 4, energy=300.0))  # three seconds from t=1, two of them after the change

    assert used(driver.ledger, A) == {"allocated_seconds": 1.0, "energy": 0.0}
    assert used(driver.ledger, B) == {"allocated_seconds": 2.0, "energy": 200.0}
    assert rest(driver.ledger, GPU) == {"allocated_seconds": 1.0, "energy": 100.0}


def test_a_window_waits_for_the_poll_that_covers_it() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.observe(window(GPU, -0.5, 0.5, energy=0.0))
    driver.hold(1, exclusive(A, GPU))
    driver.observe(window(GPU, 0.5, 1.5, energy=100.0))

    assert driver.total(GPU, "energy") == 100.0
    assert used(driver.ledger, A)["energy"] == 0.0

    driver.hold(2)  # ended somewhere in 1..2

    assert used(driver.ledger, A)["energy"] == 50.0
    assert rest(driver.ledger, GPU)["energy"] == 50.0


def test_a_kubelet_that_was_down_costs_nothing_where_the_holder_is_the_same() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    for second in range(100):
        driver.observe(window(GPU, second, second + 1, energy=10.0 * second))
    assert len(driver.ledger.to_state("boot", 100 * S, WALL).devices[GPU].pending) <= 17
    driver.hold(100, exclusive(A, GPU))

    assert used(driver.ledger, A) == {"allocated_seconds": 100.0, "energy": 990.0}
    assert rest(driver.ledger, GPU) == {"allocated_seconds": 0.0, "energy": 0.0}


def test_lost_windows_and_a_new_sampler_cost_no_joules() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.observe(window(GPU, 0, 1, energy=500.0, busy=1.0))
    driver.observe(window(GPU, 7, 8, session=6, energy=900.0, busy=2.0))  # restarted at t=6: busy time began anew
    driver.hold(8, exclusive(A, GPU))

    assert used(driver.ledger, A) == {"allocated_seconds": 8.0, "energy": 400.0, "busy": 3.0}


def test_a_gpu_reset_restarts_counters_and_integrals() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.observe(window(GPU, 0, 1, energy=500.0, busy=0.5))
    driver.observe(window(GPU, 1, 2, epoch=1, energy=20.0, busy=0.25))
    driver.hold(2, exclusive(A, GPU))

    assert used(driver.ledger, A) == {"allocated_seconds": 2.0, "energy": 20.0, "busy": 0.75}
    assert driver.total(GPU, "energy") == 520.0


def test_a_late_or_repeated_window_is_left_out() -> None:
    driver = Driver()
    driver.observe(window(GPU, 1, 2, session=1, energy=10.0))
    driver.observe(window(GPU, 1, 2, session=1, energy=11.0))
    driver.observe(window(GPU, 2, 3, session=0, energy=12.0))

    assert driver.total(GPU, "energy") == 10.0


def test_numbers_that_are_none_are_left_out() -> None:
    driver = Driver()
    driver.observe(window(GPU, 0, 1, energy=float("nan"), busy=float("inf")))

    assert driver.ledger.totals() == {}


def test_shared_devices_split_energy_by_share_and_busy_time_by_process() -> None:
    driver = Driver()
    driver.hold(0, share(A, GPU, 0.25), share(B, GPU, 0.25))
    processes = (
        ProcessUse(pid=1, busy_ratio=0.3, memory_used_bytes=100),
        ProcessUse(pid=2, busy_ratio=0.1, memory_used_bytes=50),
        ProcessUse(pid=3, busy_ratio=0.4, memory_used_bytes=7),  # nobody knows whose
    )
    owners = {1: A, 2: A}
    driver.ledger.observe(window(GPU, 0, 1, energy=0.0, busy=0.0, processes=processes), owners)
    driver.ledger.observe(
        window(GPU, 1, 2, energy=80.0, busy=0.8, last={"memory": 157.0, "power": 80.0}, processes=processes), owners
    )
    driver.hold(2, share(A, GPU, 0.25), share(B, GPU, 0.25))

    assert used(driver.ledger, A) == {"allocated_seconds": 0.5, "energy": 20.0, "busy": 0.4}
    assert used(driver.ledger, B) == {"allocated_seconds": 0.5, "energy": 20.0}
    assert rest(driver.ledger, GPU) == {"allocated_seconds": 1.0, "energy": 40.0, "busy": 0.4}
    assert driver.gauges(A) == {"memory": 150.0, "power": 20.0}
    assert driver.gauges(B) == {"power": 20.0}  # no process is known to be its own: absent, not 0


def test_without_processes_a_shared_devices_busy_time_is_nobodys() -> None:
    driver = Driver()
    driver.hold(0, share(A, GPU, 0.5))
    driver.observe(window(GPU, 0, 1, busy=0.0))
    driver.observe(window(GPU, 1, 2, busy=0.8, last={"memory": 157.0}))
    driver.hold(2, share(A, GPU, 0.5))

    assert used(driver.ledger, A) == {"allocated_seconds": 1.0}
    assert rest(driver.ledger, GPU)["busy"] == 0.8
    assert driver.gauges(A) == {}


def test_mig_holders_get_the_gpus_energy_by_slices_and_their_own_busy_time() -> None:
    driver = Driver(MIG_INVENTORY)
    holds = (exclusive(A, LEAF_A), share(B, LEAF_B, 0.5))
    driver.hold(0, *holds)
    driver.observe(window(MIG_GPU, 0, 1, energy=0.0))
    driver.observe(window(LEAF_A, 0, 1, busy=0.0))
    driver.observe(window(MIG_GPU, 1, 2, energy=700.0, last={"power": 700.0, "memory": 5.0}))
    driver.observe(window(LEAF_A, 1, 2, busy=0.5, last={"memory": 3.0}))
    driver.hold(2, *holds)

    assert used(driver.ledger, A) == {"allocated_seconds": 2.0, "energy": 300.0, "busy": 0.5}  # 3 of 7 slices
    assert used(driver.ledger, B) == {"allocated_seconds": 1.0, "energy": 100.0}  # half of 2 of 7
    assert rest(driver.ledger, MIG_GPU) == {"energy": 300.0}
    assert rest(driver.ledger, LEAF_B) == {"allocated_seconds": 1.0}
    assert driver.gauges(A) == {"memory": 3.0, "power": 300.0}


def test_a_gauge_of_a_silent_device_is_not_the_present() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.observe(window(GPU, 0, 1, last={"memory": 5.0}))

    assert driver.gauges(A, at=1) == {"memory": 5.0}
    assert driver.gauges(A, at=12) == {}


def test_an_xid_goes_to_the_sole_exclusive_holder_else_to_nobody() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.ledger.event(Event(entity=GPU, kind="xid", code=79, wall_ns=WALL + 5))
    driver.ledger.event(Event(entity=GPU, kind="mig_config_change", code=0, wall_ns=WALL))
    driver.hold(1, exclusive(A, GPU))
    driver.ledger.event(Event(entity=GPU, kind="xid", code=79, wall_ns=WALL + 7))
    driver.hold(2, exclusive(B, GPU))

    assert used(driver.ledger, A)["xid_errors/79"] == 1.0
    assert rest(driver.ledger, GPU)["xid_errors/79"] == 1.0
    seen = [(x.entity, x.xid, x.count, x.last_wall_ns) for x in driver.ledger.xids() if x.count]
    assert seen == [(GPU, 79, 2, WALL + 7)]


def test_an_xid_of_a_mig_gpu_needs_one_holder_on_all_of_it() -> None:
    driver = Driver(MIG_INVENTORY)
    event = Event(entity=MIG_GPU, kind="xid", code=13, wall_ns=WALL)
    driver.hold(0, exclusive(A, LEAF_A))
    driver.ledger.event(event)
    driver.hold(1, exclusive(A, LEAF_A))
    driver.hold(2, exclusive(A, LEAF_A), exclusive(B, LEAF_B))
    driver.ledger.event(event)
    driver.hold(3, exclusive(A, LEAF_A), exclusive(B, LEAF_B))

    assert used(driver.ledger, A)["xid_errors/13"] == 1.0
    assert rest(driver.ledger, MIG_GPU) == {"xid_errors/13": 1.0}


def test_a_claim_of_the_same_name_and_another_uid_starts_at_zero() -> None:
    driver = Driver()
    first, second = claim("a", uid="1"), claim("a", uid="2")
    driver.hold(0, exclusive(first, GPU))
    driver.hold(5, exclusive(first, GPU))
    driver.hold(6, exclusive(second, GPU))
    driver.hold(7, exclusive(second, GPU))

    assert used(driver.ledger, first) == {"allocated_seconds": 5.0}
    assert used(driver.ledger, second) == {"allocated_seconds": 1.0}


def test_a_claim_that_comes_back_goes_on_and_a_pod_starts_anew() -> None:
    driver = Driver()
    worker = pod("worker")
    for second in (0, 5):
        driver.hold(second, exclusive(A, GPU), exclusive(worker, "GPU-2"))
    driver.hold(6)
    for second in (7, 9):
        driver.hold(second, exclusive(A, GPU), exclusive(worker, "GPU-2"))

    assert used(driver.ledger, A) == {"allocated_seconds": 7.0}
    assert used(driver.ledger, worker) == {"allocated_seconds": 2.0}
    assert driver.account(worker).start_wall_ns == WALL + 7 * S


def test_an_ended_account_is_kept_five_minutes_with_its_final_totals() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.hold(10, exclusive(A, GPU))
    driver.hold(11)

    account = driver.account(A)
    assert (account.ended_wall_ns, account.totals, account.gauges) == (WALL + 11 * S, {"allocated_seconds": 10.0}, {})
    assert len(driver.ledger.accounts(310 * S)) == 1
    assert driver.ledger.accounts(311 * S) == ()

    driver.hold(312, exclusive(A, GPU))
    assert used(driver.ledger, A) == {"allocated_seconds": 0.0}


def test_a_new_account_shows_its_counters_at_zero_before_they_rise() -> None:
    driver = Driver()
    driver.observe(window(GPU, 0, 1, energy=5.0, busy=0.1, ecc=3.0))
    driver.hold(1, exclusive(A, GPU))

    assert used(driver.ledger, A) == {"allocated_seconds": 0.0, "energy": 0.0, "busy": 0.0}


def test_unheld_time_is_counted_and_a_gpu_cut_into_mig_devices_is_not() -> None:
    driver = Driver(MIG_INVENTORY)
    driver.hold(0)
    driver.hold(3)

    assert driver.ledger.unattributed().keys() == {LEAF_A, LEAF_B}
    assert rest(driver.ledger, LEAF_A) == {"allocated_seconds": 3.0}


def test_devices_stand_while_nvml_is_released_and_are_forgotten_when_gone_for_long() -> None:
    driver = Driver()
    driver.observe(window(GPU, 0, 1, energy=5.0))
    driver.ledger.inventory(
        Inventory(
            session=0, epoch=0, driver_version=None, nvml_version=None, cuda_version=None, devices=(), released=True
        )
    )
    driver.hold(1)
    driver.hold(1000)
    assert GPU in driver.ledger.totals()

    driver.ledger.inventory(MIG_INVENTORY)
    driver.hold(1001)
    driver.hold(1300)
    assert GPU in driver.ledger.totals()
    driver.hold(1301)
    assert GPU not in driver.ledger.totals()


def test_an_agent_that_restarts_goes_on_where_it_was() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.observe(window(GPU, 0, 1, energy=100.0, busy=1.0))
    driver.hold(1, exclusive(A, GPU))
    driver.observe(window(GPU, 1, 2, energy=200.0, busy=2.0))  # not settled when the journal is written
    driver.restart(saved=2, now=12)
    driver.observe(window(GPU, 12, 13, session=12, energy=900.0, busy=1.0))
    driver.hold(13, exclusive(A, GPU))

    assert used(driver.ledger, A) == {"allocated_seconds": 13.0, "energy": 800.0, "busy": 3.0}
    assert driver.total(GPU, "busy") == 3.0
    assert driver.ledger.unobserved_seconds == 10.0


def test_another_holder_after_a_restart_leaves_the_gap_to_nobody() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.observe(window(GPU, 0, 1, energy=100.0))
    driver.hold(1, exclusive(A, GPU))
    driver.restart(saved=1, now=12)
    driver.hold(12, exclusive(B, GPU))
    driver.observe(window(GPU, 11, 12, energy=900.0))

    assert used(driver.ledger, A) == {"allocated_seconds": 1.0, "energy": 0.0}
    assert used(driver.ledger, B) == {"allocated_seconds": 0.0, "energy": 0.0}
    assert rest(driver.ledger, GPU) == {"allocated_seconds": 11.0, "energy": 800.0}


def test_after_a_reboot_accounts_stay_and_counters_are_new() -> None:
    driver = Driver()
    driver.hold(100, exclusive(A, GPU))
    driver.observe(window(GPU, 100, 101, energy=100.0))
    driver.observe(window(GPU, 101, 102, energy=300.0))
    driver.hold(102, exclusive(A, GPU))
    driver.observe(window(GPU, 102, 103, energy=340.0))
    driver.restart(saved=103, now=5, boot_id="another", wall_seconds=60)
    driver.observe(window(GPU, 4, 5, energy=7000.0))
    driver.hold(6, exclusive(A, GPU))

    assert used(driver.ledger, A) == {"allocated_seconds": 2.0, "energy": 200.0}
    assert driver.total(GPU, "energy") == 7000.0
    assert rest(driver.ledger, GPU)["energy"] == 40.0
    assert driver.ledger.unobserved_seconds == 60.0


def test_a_wall_clock_that_was_set_back_gives_no_negative_time() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.restart(saved=1, now=5, boot_id="another", wall_seconds=-3600)

    assert driver.ledger.unobserved_seconds == 0.0


def test_retention_runs_on_while_the_agent_is_away() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.hold(1)
    driver.restart(saved=2, now=200)
    assert len(driver.ledger.accounts(300 * S)) == 1
    driver.restart(saved=300, now=302)
    assert driver.ledger.accounts(302 * S) == ()


def test_two_polls_of_one_moment_and_unknown_quantities_change_nothing() -> None:
    ledger = Ledger(QUANTITIES)
    ledger.inventory(INVENTORY)
    ledger.hold([exclusive(A, GPU)], 5, WALL)
    ledger.hold([], 5, WALL)
    ledger.observe(window(GPU, 0, 1, last={"x": 1.0}, raw={"y": 2.0}))

    assert ledger.accounts(5)[0].ended_wall_ns is None
    assert ledger.totals() == {}


def test_a_hold_on_a_device_nobody_listed_is_still_timed() -> None:
    driver = Driver()
    for second in (0, 2):
        driver.hold(second, Hold(holder=A, entity="GPU-lost"))

    assert used(driver.ledger, A) == {"allocated_seconds": 2.0}


def test_an_xid_while_a_second_holder_joins_a_mig_gpu_is_nobodys() -> None:
    driver = Driver(MIG_INVENTORY)
    driver.hold(0, exclusive(A, LEAF_A))
    driver.ledger.event(Event(entity=MIG_GPU, kind="xid", code=13, wall_ns=WALL))
    driver.hold(1, exclusive(A, LEAF_A), exclusive(B, LEAF_B))

    assert rest(driver.ledger, MIG_GPU) == {"xid_errors/13": 1.0}


def test_a_counter_that_is_read_late_is_split_over_every_holder_since() -> None:
    driver = Driver()
    claims = [claim(f"c{number}") for number in range(20)]
    driver.hold(10, exclusive(claims[0], GPU))
    driver.observe(window(GPU, 9, 10, energy=0.0))
    for second in range(1, 40):
        driver.hold(10 + second, exclusive(claims[second // 2], GPU))
    driver.observe(window(GPU, 48, 49, energy=390.0))

    assert [used(driver.ledger, one)["energy"] for one in claims] == [10.0] * 20
    assert rest(driver.ledger, GPU)["energy"] == 190.0


def test_what_comes_late_for_an_account_that_a_namesake_replaced_is_nobodys() -> None:
    driver = Driver()
    driver.observe(window(GPU, 9, 10, energy=0.0))
    driver.hold(10, exclusive(pod("worker"), GPU))
    driver.hold(11, exclusive(pod("worker"), GPU))
    driver.hold(12)
    driver.hold(13, exclusive(pod("worker"), GPU))
    driver.hold(14, exclusive(pod("worker"), GPU))
    driver.observe(window(GPU, 13, 14, energy=400.0))

    assert used(driver.ledger, pod("worker")) == {"allocated_seconds": 1.0, "energy": 100.0}
    assert rest(driver.ledger, GPU)["energy"] == 300.0


def test_a_driver_counter_that_steps_back_a_little_is_not_given_twice() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    for second, joules in enumerate((500_000_000.0, 499_999_999.999, 500_000_000.0, 500_000_300.0)):
        driver.observe(window(GPU, second, second + 1, energy=joules))
    driver.hold(4, exclusive(A, GPU))

    assert used(driver.ledger, A)["energy"] == 300.0
    assert driver.total(GPU, "energy") == 500_000_300.0


def test_a_driver_counter_that_steps_back_over_a_restart_of_the_agent_is_not_given_twice() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.observe(window(GPU, 0, 1, energy=500.0))
    driver.hold(1, exclusive(A, GPU))
    driver.restart(saved=1, now=5)
    driver.observe(window(GPU, 5, 6, session=5, energy=499.0))
    driver.observe(window(GPU, 6, 7, session=5, energy=520.0))
    driver.hold(7, exclusive(A, GPU))

    assert used(driver.ledger, A)["energy"] == 20.0


def test_a_reset_in_a_running_sampler_restarts_a_counter_however_far_it_has_come() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    driver.observe(window(GPU, 0, 1, session=1, energy=500.0))
    driver.observe(window(GPU, 1, 2, session=1, epoch=1, energy=400.0))
    driver.hold(2, exclusive(A, GPU))

    assert used(driver.ledger, A)["energy"] == 400.0


def test_a_journal_that_does_not_know_the_run_of_a_counter_is_gone_on_with() -> None:
    old = msgspec.json.decode(b'{"value":5.0,"at_ns":7}', type=CounterState)

    assert old == CounterState(value=5.0, at_ns=7, session=0, epoch=0)


def test_devices_that_come_and_go_while_the_kubelet_is_silent_are_forgotten() -> None:
    driver = Driver(MIG_INVENTORY)
    for generation in range(50):
        now = 400 * generation
        leaf = f"MIG-{generation}"
        driver.ledger.inventory(
            Inventory(
                session=0, epoch=generation, driver_version=None, nvml_version=None, cuda_version=None,
                devices=(
                    *MIG_INVENTORY.devices[:1],
                    dataclasses.replace(MIG_INVENTORY.devices[1], entity=Entity(uuid=leaf, parent=MIG_GPU, gpu=1)),
                ),
            )
        )
        driver.observe(window(leaf, now, now + 1, busy=0.5))
        driver.ledger.event(Event(entity=leaf, kind="xid", code=13, wall_ns=WALL))
        for second in (1, 399):
            driver.ledger.accounts((now + second) * S)

    assert set(driver.ledger.totals()) == {"MIG-49"}
    state = driver.ledger.to_state("boot", 20_000 * S, WALL)
    assert set(state.devices) == {"MIG-49"}
    assert {xid.entity for xid in state.xids} == {"MIG-49"}


def test_xids_that_wait_for_a_poll_are_bounded_and_the_oldest_are_nobodys() -> None:
    driver = Driver()
    driver.hold(0, exclusive(A, GPU))
    for code in range(MAX_PENDING_XIDS + 2):
        driver.ledger.event(Event(entity=GPU, kind="xid", code=code, wall_ns=WALL))
    left = rest(driver.ledger, GPU)
    driver.hold(1, exclusive(A, GPU))

    assert left == {"xid_errors/0": 1.0, "xid_errors/1": 1.0}
    assert used(driver.ledger, A)["xid_errors/2"] == 1.0
    assert len(used(driver.ledger, A)) == MAX_PENDING_XIDS + 1  # and the time


def test_common_xids_stand_at_zero_for_each_whole_gpu_and_never_in_the_journal() -> None:
    driver = Driver(MIG_INVENTORY)
    driver.ledger.event(Event(entity=MIG_GPU, kind="xid", code=79, wall_ns=WALL))

    assert [(x.entity, x.xid, x.count, x.last_wall_ns) for x in driver.ledger.xids()] == [
        (MIG_GPU, 79, 1, WALL),
        *((MIG_GPU, xid, 0, 0) for xid in (13, 31, 43, 45, 48, 63, 64, 74, 92, 94, 95, 119, 120)),
    ]
    assert [xid.xid for xid in driver.ledger.to_state("boot", 0, WALL).xids] == [79]


def test_memory_that_no_holder_can_be_given_is_the_rest() -> None:
    driver = Driver()
    driver.hold(0, share(A, GPU, 0.5), share(B, GPU, 0.5))
    processes = (ProcessUse(pid=1, memory_used_bytes=100), ProcessUse(pid=2, memory_used_bytes=7))
    driver.ledger.observe(window(GPU, 0, 1, last={"memory": 157.0}, processes=processes), {1: A})
    accounts = driver.ledger.accounts(S)

    assert driver.ledger.unattributed_gauges(accounts, S) == {GPU: {"memory": 57.0}}


def test_only_mig_devices_of_a_cut_gpu_have_a_rest_of_memory() -> None:
    driver = Driver(MIG_INVENTORY)
    driver.hold(0, exclusive(A, LEAF_A))
    driver.observe(window(MIG_GPU, 0, 1, last={"memory": 5.0}))
    driver.observe(window(LEAF_A, 0, 1, last={"memory": 3.0}))
    driver.observe(window(LEAF_B, 0, 1, last={"memory": 2.0}))
    accounts = driver.ledger.accounts(S)

    assert driver.ledger.unattributed_gauges(accounts, S) == {LEAF_A: {"memory": 0.0}, LEAF_B: {"memory": 2.0}}
