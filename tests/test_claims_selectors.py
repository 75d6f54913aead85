"""CEL selectors: what Kubernetes' own evaluator says, what it costs, and what a broken engine may do.

The verdicts are those of k8s.io/dynamic-resource-allocation/cel of Kubernetes 1.36.2; where it is about equality, of
cel-go's interpreter, which asks the left side's type and takes every failed comparison for "not equal" in `!=`.
"""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.cel.evaluator import Content, Evaluator, content
from claimscope.cel.process import WorkerProcess
from claimscope.claims.cluster import Cluster
from claimscope.claims.model import DeviceFacts, DeviceKey, Version
from claimscope.claims.selectors import Absent, Match, Selectors, Verdict, cure
from claimscope.kube.objects import AttributeValue, Capacity, ResourceSlice

pytest.importorskip("cel_expr_python")

RECORDED = Path(__file__).parent / "recordings" / "kubernetes-1.36"
GPU = 'device.attributes["gpu.nvidia.com"]'
MEMORY = 'device.capacity["gpu.nvidia.com"].memory'


def gpu(index: int = 0, *, shared: bool = False, **attributes: AttributeValue) -> DeviceFacts:
    return DeviceFacts(
        key=DeviceKey("gpu.nvidia.com", f"node-{index // 8}", f"gpu-{index % 8}"),
        attributes={
            "type": "gpu",
            "uuid": f"GPU-{index}",
            "productName": "NVIDIA H100 80GB HBM3",
            "index": 4,
            "driverVersion": Version("550.163.1"),
            "resource.kubernetes.io/pcieRoot": "pci0000:16",
            **attributes,
        },
        capacity={"memory": Capacity(value="80Gi")},
        shared=shared,
    )


REMEMBERING = Selectors.in_process()
EVALUATOR = Evaluator()


@pytest.fixture(scope="module")
def selectors() -> Selectors:
    return Selectors.in_process()


MATCHING = [
    # The device.
    "device.driver == 'gpu.nvidia.com'",
    "!device.allowMultipleAllocations",
    f"{GPU}.type == 'gpu'",
    "device.attributes['resource.kubernetes.io'].pcieRoot == 'pci0000:16'",
    f"{GPU}['type'] == 'gpu'",
    "'type' in device.attributes['gpu.nvidia.com']",
    "'gpu.nvidia.com' in device.attributes",
    "size(device.attributes) == 2",
    "device.attributes.exists(d, has(device.attributes[d].pcieRoot))",
    "device.attributes[device.driver].type == 'gpu'",
    # An error that the other side makes up for.
    f"{GPU}.healthy || true",
    f"true || {GPU}.healthy",
    # A domain that the device lacks.
    "device.attributes['other'].?x.orValue('none') == 'none'",
    "device.attributes[?'other'].?x.orValue('none') == 'none'",
    "!device.attributes['other'].?x.hasValue()",
    # Optional.
    f"{GPU}.?type.orValue('x') == 'gpu'",
    f"{GPU}[?'type'].orValue('x') == 'gpu'",
    f"{GPU}.?type.optMap(t, t == 'gpu').orValue(false)",
    # Numbers compare by value whatever their type.
    f"{GPU}.index == 4.0",
    f"{GPU}.index >= 4u",
    f"{GPU}.type != 5",
    # Versions.
    f"{GPU}.driverVersion == semver('550.163.1')",
    f"{GPU}.driverVersion == semver('550.163.1+build')",
    f"{GPU}.driverVersion == {GPU}.driverVersion",
    f"{GPU}.driverVersion in [semver('550.163.1')]",
    f"{GPU}.driverVersion != '550.163.1'",
    f"{GPU}.driverVersion != null",
    f"{GPU}.driverVersion.isGreaterThan(semver('550.54.0'))",
    f"{GPU}.driverVersion.compareTo(semver('550', true)) > 0",
    f"{GPU}.driverVersion.major() == 550 && {GPU}.driverVersion.minor() == 163 && {GPU}.driverVersion.patch() == 1",
    "semver('550', true) == semver('550.0.0')",
    "isSemver('1.2.3') && !isSemver('1.2') && isSemver('v1.2', true)",
    # Quantities.
    f"{MEMORY}.compareTo(quantity('40Gi')) >= 0",
    f"{MEMORY} == quantity('81920Mi')",
    f"{MEMORY}.isGreaterThan(quantity('79Gi')) && {MEMORY}.isLessThan(quantity('81Gi'))",
    f"{MEMORY}.isInteger() && {MEMORY}.asInteger() == 85899345920",
    f"{MEMORY}.sub(quantity('80Gi')) == quantity('0')",
    f"{MEMORY}.add(5).sub(5) == quantity('80Gi')",
    f"sign({MEMORY}) == 1",
    "quantity('1500m').asApproximateFloat() == 1.5 && !quantity('1500m').isInteger()",
    "isQuantity('1.3Gi') && !isQuantity('200K') && !isQuantity('Mi')",
    "quantity('200M').compareTo(quantity('0.2G')) == 0",
    # Extensions.
    f"{GPU}.productName.lowerAscii().contains('h100')",
    f"{GPU}.productName.split(' ')[1] == 'H100' && 'a-b'.replace('-', '.') == 'a.b' && 'abc'.substring(1) == 'bc'",
    "'abc'.charAt(0) == 'a' && 'abc'.indexOf('c') == 2 && ' a '.trim() == 'a' && ['a', 'b'].join('-') == 'a-b'",
    f"{GPU}.productName.matches('^NVIDIA .*80GB')",
    f"{GPU}.productName.find('[0-9]+GB') == '80GB' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
    f"sets.contains(['gpu', 'mig'], [{GPU}.type]) && sets.intersects(['a'], ['a', 'b'])",
    "[1, 2].sum() == 3 && [3, 1].min() == 1 && [3, 1].max() == 3 && [1, 2].isSorted()",
    "device.attributes['gpu.nvidia.com'].exists(name, value, name == 'type' && value == 'gpu')",
    "device.capacity['gpu.nvidia.com'].transformList(name, value, name) == ['memory']",
    "device.attributes['gpu.nvidia.com'].all(name, name != '')",
    "cel.bind(dra, device.attributes['gpu.nvidia.com'], dra.type == 'gpu' && dra.index == 4)",
    "cel.bind(dra, device.attributes['gpu.nvidia.com'], dra).type == 'gpu'",
]

NOT_MATCHING = [
    "device.driver == 'other'",
    f"{GPU}.type == 5",
    f"{GPU}.healthy && false",
    f"false && {GPU}.healthy",
    "'x' in device.attributes['other']",
    "has(device.attributes['other'].x)",
    "'other' in device.attributes",
    "'other' in device.attributes && has(device.attributes['other'].x)",
    f"has({GPU}.healthy)",
    f"has({GPU}.healthy) && {GPU}.healthy",
    f"'550.163.1' == {GPU}.driverVersion",  # only the left side's type decides
    f"{GPU}.driverVersion in ['550.163.1']",
    f"{GPU}.driverVersion == null",
    f"{GPU}.type == semver('1.0.0')",
    "device.allowMultipleAllocations",
]

FAILING = {
    f"{GPU}.healthy": "no such key: healthy",
    f"!{GPU}.healthy": "no such key: healthy",
    f"{GPU}.healthy && true": "no such key: healthy",
    "device.attributes['other'].foo": "no such key: foo",
    f"{GPU}.type < 5": "no such overload",
    f"{GPU}.driverVersion == '550.163.1'": "no such overload",
    f"{GPU}.type == 'gpu' && {GPU}.driverVersion == '550.163.1'": "no such overload",
    f"cel.bind(dra, {GPU}, dra.driverVersion == '550.163.1')": "no such overload",
    f"{GPU}.?driverVersion.orValue('') == '550.163.1'": "no such overload",
    f"['driverVersion'].exists(name, {GPU}[name] == '550.163.1')": "no such overload",
    f"{GPU}.driverVersion == {GPU}.type": "no such overload",
    f"{GPU}.driverVersion == quantity('1')": "no such overload",
    f"{GPU}.type.isGreaterThan(semver('1.0.0'))": "no such overload",
    f"{GPU}.driverVersion > '1'": "no such overload",
    f"{GPU}.type": "CEL result of type string could not be converted to bool",
    "quantity('40GiB').isInteger()": "unable to parse quantity's suffix",
    "semver('1.2') == semver('1.2.0')": "No Major.Minor.Patch elements found",
    "quantity('1500m').asInteger() == 1": "cannot convert value to integer",
}

UNKNOWN = {
    "ip('1.2.3.4').family() == 4": "undeclared reference to 'ip'",
    "device.name == 'gpu-0'": "device.name is not known here",
    "device == device": "uses device as a whole",
    "device.attributes['gpu.' + 'nvidia.com'].type == 'gpu'": "computes a domain",
    "cel.bind(all, device.attributes, has(all['other'].x))": "binds device or one of its maps",
    "1 +": "Syntax error",
    "1": "the result is of type int, not bool",
    f"{GPU}.type.find('(?=g)') == ''": "not supported: regular expression",
    "math.least(1, 2) == 1": "undeclared reference to 'math'",
}


@pytest.mark.parametrize("expression", MATCHING)
def test_expressions_that_kubernetes_finds_true(selectors: Selectors, expression: str) -> None:
    assert selectors.match(expression, gpu()) == Match(Verdict.MATCH)


@pytest.mark.parametrize("expression", NOT_MATCHING)
def test_expressions_that_kubernetes_finds_false(selectors: Selectors, expression: str) -> None:
    assert selectors.match(expression, gpu()) == Match(Verdict.NO_MATCH)


@pytest.mark.parametrize(("expression", "text"), FAILING.items())
def test_expressions_that_kubernetes_fails_on(selectors: Selectors, expression: str, text: str) -> None:
    assert selectors.match(expression, gpu()) == Match(Verdict.ERROR, text)


@pytest.mark.parametrize(("expression", "why"), UNKNOWN.items())
def test_what_cannot_be_evaluated_is_unknown(selectors: Selectors, expression: str, why: str) -> None:
    found = selectors.match(expression, gpu())
    assert found.verdict is Verdict.UNKNOWN
    assert why in found.text


# --- real expressions on recorded devices ---


def recorded_devices() -> list[DeviceFacts]:
    cluster = Cluster()
    listed = json.loads((RECORDED / "resourceslices.list.json").read_bytes())["items"]
    cluster.sync("resourceslices", msgspec.convert(listed, list[ResourceSlice], strict=False))
    return list(cluster.devices.values())


def class_expressions(name: str) -> list[str]:
    classes = json.loads((RECORDED / "deviceclasses.list.json").read_text())["items"]
    return [s["cel"]["expression"] for c in classes if c["metadata"]["name"] == name for s in c["spec"]["selectors"]]


def test_the_recorded_class_chooses_every_recorded_gpu(selectors: Selectors) -> None:
    devices = recorded_devices()
    expressions = class_expressions("gpu.nvidia.com")
    assert len(devices) > 0
    assert {selectors.matches_all(expressions, device) for device in devices} == {Match(Verdict.MATCH)}


def test_the_recorded_class_of_another_model_chooses_by_product_name(selectors: Selectors) -> None:
    chosen = {
        device.attributes["productName"]
        for device in recorded_devices()
        if selectors.matches_all(class_expressions("h200-only"), device).verdict is Verdict.MATCH
    }
    names = {device.attributes["productName"] for device in recorded_devices()}
    assert chosen == {name for name in names if "H200" in str(name)}


def test_a_recorded_claim_asks_for_memory_by_quantity(selectors: Selectors) -> None:
    expression = (
        "device.driver=='gpu.nvidia.com' && "
        "device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('{}')) >= 0"
    )
    device = next(device for device in recorded_devices() if device.capacity["memory"].value == "80Gi")
    assert selectors.match(expression.format("40Gi"), device) == Match(Verdict.MATCH)
    assert selectors.match(expression.format("80Gi"), device) == Match(Verdict.MATCH)
    assert selectors.match(expression.format("81Gi"), device) == Match(Verdict.NO_MATCH)


# --- ANDed selectors, memory ---


def test_selectors_are_anded_and_stop_at_the_first_that_does_not_match(selectors: Selectors) -> None:
    assert selectors.matches_all(["false", f"{GPU}.healthy"], gpu()) == Match(Verdict.NO_MATCH)
    assert selectors.matches_all([f"{GPU}.healthy", "false"], gpu()) == Match(Verdict.ERROR, "no such key: healthy")
    assert selectors.matches_all([], gpu()) == Match(Verdict.MATCH)


def evaluations(selectors: Selectors) -> float:
    return sum(s.value for s in selectors.counters() if s.family.endswith("selector_evaluations_total"))


def test_alike_devices_cost_one_evaluation() -> None:
    selectors = Selectors.in_process()
    for index in range(100):
        assert selectors.match(f"{GPU}.type == 'gpu'", gpu(index)).verdict is Verdict.MATCH
    assert evaluations(selectors) == 1


def test_an_expression_that_looks_at_the_uuid_is_evaluated_for_each() -> None:
    selectors = Selectors.in_process()
    chosen = [i for i in range(20) if selectors.match(f"{GPU}.uuid == 'GPU-7'", gpu(i)).verdict is Verdict.MATCH]
    assert chosen == [7]


def test_an_expression_that_ranges_over_all_attributes_sees_every_device() -> None:
    selectors = Selectors.in_process()
    expression = f"{GPU}.exists(name, value, value == 'GPU-7')"
    chosen = [i for i in range(20) if selectors.match(expression, gpu(i)).verdict is Verdict.MATCH]
    assert chosen == [7]


def test_values_that_are_equal_in_python_are_kept_apart() -> None:
    selectors = Selectors.in_process()
    expression = f"{GPU}.mark == 'x' || {GPU}.mark == true || {GPU}.mark == '1.0.0'"
    assert selectors.match(expression, gpu(mark=True)) == Match(Verdict.MATCH)
    assert selectors.match(expression, gpu(mark=1)) == Match(Verdict.NO_MATCH)
    assert selectors.match(expression, gpu(mark="1.0.0")) == Match(Verdict.MATCH)
    assert selectors.match(expression, gpu(mark=Version("1.0.0"))) == Match(Verdict.ERROR, "no such overload")


values = st.one_of(
    st.sampled_from(["gpu", "mig", "1.0.0", "true"]), st.integers(0, 2), st.booleans(),
    st.sampled_from([Version("1.0.0"), Version("2.0.0")]),
)  # fmt: skip
names = st.sampled_from(["type", "mark", "other.io/type", "gpu.nvidia.com/mark"])
devices = st.builds(
    lambda attributes, shared, capacity: DeviceFacts(
        key=DeviceKey("gpu.nvidia.com", "n", "d"), attributes=attributes, shared=shared,
        capacity={name: Capacity(value=value) for name, value in capacity.items()},
    ),
    st.dictionaries(names, values, max_size=4), st.booleans(),
    st.dictionaries(st.sampled_from(["memory", "other.io/memory"]), st.sampled_from(["1Gi", "1024Mi", "2Gi"])),
)  # fmt: skip
MEMORISED = [
    f"{GPU}.type == 'gpu'",
    f"{GPU}.mark == '1.0.0' || {GPU}.type == true",
    f"has({GPU}.type) && device.attributes['other.io'].?type.orValue('gpu') == 'gpu'",
    "'other.io' in device.attributes",
    f"{GPU}.exists(name, value, value == 1)",
    f"cel.bind(dra, {GPU}, 'mark' in dra && dra.?type.hasValue())",
    "device.allowMultipleAllocations && device.capacity['other.io'].memory == quantity('1Gi')",
    f"{MEMORY}.isLessThan(quantity('2Gi'))",
    f"(device.allowMultipleAllocations ? {GPU} : device.attributes['other.io']).type == 'gpu'",
    f"{GPU} == device.attributes['other.io']",
]


@given(st.lists(devices, min_size=2, max_size=8), st.sampled_from(MEMORISED))
@settings(max_examples=200)
def test_what_is_remembered_is_what_would_be_evaluated(found: list[DeviceFacts], expression: str) -> None:
    remembered = [REMEMBERING.match(expression, device) for device in found]
    evaluated = [EVALUATOR.evaluate(expression, [content(device)]).outcomes[0] for device in found]
    assert [(match.verdict, match.text) for match in remembered] == [(o.verdict, o.text) for o in evaluated]


def test_sharing_is_looked_at_where_it_is_named() -> None:
    selectors = Selectors.in_process()
    assert selectors.match("device.allowMultipleAllocations", gpu(shared=True)).verdict is Verdict.MATCH
    assert selectors.match("device.allowMultipleAllocations", gpu()).verdict is Verdict.NO_MATCH


def test_a_qualified_name_in_the_drivers_domain_is_the_unqualified_one() -> None:
    selectors = Selectors.in_process()
    device = DeviceFacts(
        key=DeviceKey("gpu.nvidia.com", "n", "d"),
        attributes={"gpu.nvidia.com/type": "gpu"},
        capacity={"gpu.nvidia.com/memory": Capacity(value="80Gi")},
    )
    assert selectors.matches_all([f"{GPU}.type == 'gpu'", f"{MEMORY} == quantity('80Gi')"], device).verdict is (
        Verdict.MATCH
    )


def test_a_text_in_an_expression_is_never_code(selectors: Selectors) -> None:
    assert selectors.match("'device.attributes[x].y == 1 // no comment' != ''", gpu()) == Match(Verdict.MATCH)


def test_a_device_whose_version_is_none_fails_only_where_it_is_looked_at(selectors: Selectors) -> None:
    broken = gpu(driverVersion=Version("550.163"))
    assert selectors.match(f"{GPU}.type == 'gpu'", broken) == Match(Verdict.MATCH)
    assert selectors.match(f"{GPU}.driverVersion == semver('1.0.0')", broken).verdict is Verdict.ERROR


# --- the fix that is suggested ---


def test_the_cure_for_a_missing_attribute_asks_for_it_first() -> None:
    assert cure("device.attributes['gpu.nvidia.com'].healthy == true", "no such key: healthy") == (
        'some devices have no healthy; write has(device.attributes["gpu.nvidia.com"].healthy) && '
        "device.attributes['gpu.nvidia.com'].healthy == true"
    )


def test_the_cured_expression_is_false_instead_of_failing(selectors: Selectors) -> None:
    expression = f"{GPU}.healthy == true"
    failed = selectors.match(expression, gpu())
    written = cure(expression, failed.text).partition("write ")[2]
    assert selectors.match(written, gpu()) == Match(Verdict.NO_MATCH)
    assert selectors.match(written, gpu(healthy=True)) == Match(Verdict.MATCH)


def test_the_cure_for_a_version_compared_with_a_text() -> None:
    assert cure(f"{GPU}.driverVersion == '550.163.1'", "no such overload") == (
        f'a version cannot be compared with a string; write {GPU}.driverVersion == semver("550.163.1")'
    )
    assert cure(f"cel.bind(a, {GPU}, a.driverVersion == '550')", "no such overload").endswith(
        'write a.driverVersion == semver("550", true)'
    )


def test_there_is_no_cure_for_an_error_that_is_not_known() -> None:
    assert cure("true", "something else") == ""


# --- the worker process ---


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    process = WorkerProcess(recycle_after=1000)
    yield process
    process.close()


async def settled(selectors: Selectors, expression: str, devices: list[DeviceFacts]) -> list[Match]:
    for device in devices:
        selectors.match(expression, device)
    assert await selectors.settle()
    return [selectors.match(expression, device) for device in devices]


async def test_what_is_open_is_unknown_until_it_is_settled(worker: WorkerProcess) -> None:
    selectors = Selectors(worker)
    expression = f"{GPU}.uuid == 'GPU-1'"
    assert selectors.match(expression, gpu(0)) == Match(Verdict.UNKNOWN, "not evaluated yet")
    found = await settled(selectors, expression, [gpu(0), gpu(1)])
    assert found == [Match(Verdict.NO_MATCH), Match(Verdict.MATCH)]
    assert not await selectors.settle()


async def test_all_selectors_of_a_class_are_settled_at_once(worker: WorkerProcess) -> None:
    selectors = Selectors(worker)
    expressions = ["device.driver == 'gpu.nvidia.com'", f"{GPU}.type == 'gpu'", f"{GPU}.healthy"]
    selectors.matches_all(expressions, gpu())
    await selectors.settle()
    assert selectors.matches_all(expressions, gpu()) == Match(Verdict.ERROR, "no such key: healthy")


async def test_an_expression_that_does_not_compile_is_unknown_for_good(worker: WorkerProcess) -> None:
    selectors = Selectors(worker)
    found = await settled(selectors, "nonsense(", [gpu()])
    assert found[0].verdict is Verdict.UNKNOWN
    assert "Syntax error" in found[0].text
    assert not await selectors.settle()


async def test_who_settles_at_the_same_time_hears_of_the_answers_too(worker: WorkerProcess) -> None:
    selectors = Selectors(worker)
    selectors.match("true", gpu())
    assert list(await asyncio.gather(selectors.settle(), selectors.settle())) == [True, True]
    assert selectors.match("true", gpu()) == Match(Verdict.MATCH)
    assert list(await asyncio.gather(selectors.settle(), selectors.settle())) == [False, False]


def test_a_worker_is_replaced_before_its_leak_grows(worker: WorkerProcess) -> None:
    devices = [Content(driver="d")] * 600
    first = len(worker.evaluate("device.driver == 'd'", devices).outcomes), worker.pid
    second = len(worker.evaluate("device.driver == 'd'", devices).outcomes), worker.pid
    third = len(worker.evaluate("device.driver == 'd'", devices).outcomes), worker.pid
    assert (first[0], second[0], third[0]) == (600, 600, 600)
    assert first[1] == second[1] != third[1]
    assert worker.restarts == {"recycled": 1}


def test_a_worker_that_was_killed_costs_nothing_but_a_restart(worker: WorkerProcess) -> None:
    worker.evaluate("true", [Content(driver="d")])
    child = worker._child
    assert child is not None
    child.kill()
    child.wait()
    assert [o.verdict for o in worker.evaluate("true", [Content(driver="d")]).outcomes] == [Verdict.MATCH]
    assert worker.restarts == {"crashed": 1}


# A worker that answers "true" and does something else on everything else.
SICK = """
import sys, struct, os, time
def say(answer):
    sys.stdout.buffer.write(struct.pack(">I", len(answer)) + answer)
    sys.stdout.buffer.flush()
say(b'{{}}')
while header := sys.stdin.buffer.read(4):
    body = sys.stdin.buffer.read(struct.unpack(">I", header)[0])
    if b'"expression":"true"' not in body:
        {what}
    say(b'{{"uses":{{}},"outcomes":[]}}')
"""


def sick(what: str, timeout_seconds: float) -> WorkerProcess:
    return WorkerProcess(command=(sys.executable, "-c", SICK.format(what=what)), timeout_seconds=timeout_seconds)


def test_an_expression_that_crashes_the_worker_twice_is_not_asked_again() -> None:
    worker = sick("os._exit(3)", 10)
    try:
        answer = worker.evaluate("bad", [])
        assert answer.problem == "cannot be evaluated here: the evaluating process ended twice"
        assert worker.restarts == {"crashed": 2}
        assert worker.evaluate("bad", []).problem == answer.problem
        assert worker.restarts == {"crashed": 2}
        assert worker.evaluate("true", []).problem == ""
        assert worker.up
    finally:
        worker.close()


def test_an_expression_that_hangs_is_not_waited_for() -> None:
    worker = sick("time.sleep(600)", 0.5)
    try:
        assert worker.evaluate("bad", []).problem == (
            "cannot be evaluated here: the evaluating process did not answer twice"
        )
        assert worker.restarts == {"timed_out": 2}
        assert worker.up
    finally:
        worker.close()


def test_a_garbled_answer_is_a_crash() -> None:
    worker = sick('say(b"no JSON")', 10)
    try:
        assert "ended twice" in worker.evaluate("bad", []).problem
    finally:
        worker.close()


async def test_a_worker_that_cannot_start_is_tried_again_later() -> None:
    worker = WorkerProcess(command=("/nonexistent/python",))
    selectors = Selectors(worker)
    found = await settled(selectors, "true", [gpu()])
    assert found == [Match(Verdict.UNKNOWN, "cannot be evaluated here: the evaluating process does not start")]
    assert not worker.up
    worker._command = (sys.executable, "-P", "-m", "claimscope.cel.worker")
    assert await settled(selectors, "true", [gpu()]) == [Match(Verdict.MATCH)]
    assert worker.up
    selectors.close()


async def test_closing_does_not_wait_for_a_worker_that_hangs(tmp_path: Path) -> None:
    hanging = tmp_path / "hanging"
    os.mkfifo(hanging)
    worker = sick(f"open({str(hanging)!r}, 'w').close(); time.sleep(600)", 600)
    selectors = Selectors(worker)
    selectors.match("bad", gpu())
    settling = asyncio.create_task(selectors.settle())
    await asyncio.to_thread(hanging.read_text)
    await asyncio.to_thread(selectors.close)
    await settling
    assert worker.pid is None
    assert selectors.match("bad", gpu()).verdict is Verdict.UNKNOWN


def test_without_the_engine_every_match_is_unknown_and_says_what_to_install() -> None:
    selectors = Selectors(Absent(), direct=True)
    assert selectors.match("true", gpu()) == Match(
        Verdict.UNKNOWN, "CEL cannot be evaluated here: install cel-expr-python (pip install 'claimscope[cel]')"
    )
    up = [s.value for s in selectors.counters() if s.family == "claimscope_controller_selector_engine_up"]
    assert up == [0.0]


async def test_what_is_not_asked_for_is_forgotten() -> None:
    selectors = Selectors(Absent(), kept_rounds=10)
    for index in range(100):
        selectors.match(f"expression {index}", gpu())
    for _ in range(30):
        await selectors.settle()
    assert len(selectors._entries) == 0
