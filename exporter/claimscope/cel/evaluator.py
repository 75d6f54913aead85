"""What does one CEL expression say about one device, as Kubernetes evaluates it?

The engine is Google's cel-cpp by way of cel-expr-python, an optional dependency that is imported when the first
Evaluator is made. Versions and quantities are maps with one marked key, since the engine takes no types of our own.
What Kubernetes offers and this environment does not (ip, cidr, url, format) does not compile here and is UNKNOWN.
"""

from __future__ import annotations

import enum
import importlib.util
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, TypeVar

import msgspec

from claimscope.cel.quantity import Quantity, QuantityError
from claimscope.cel.semver import Semver, SemverError
from claimscope.cel.tree import INDEXED, MAPS, QUANTITY_MARK, VERSION_MARK, UnsupportedError, Uses, adapt
from claimscope.claims.model import DeviceFacts, Version

_T = TypeVar("_T")

INSTALL: Final = "CEL cannot be evaluated here: install cel-expr-python (pip install 'claimscope[cel]')"


class Verdict(enum.Enum):
    """What came of evaluating a selector."""

    MATCH = "match"
    NO_MATCH = "no_match"
    ERROR = "error"  # a runtime error in Kubernetes, too; it stops the scheduler for the pod
    UNKNOWN = "unknown"  # not evaluated, so nothing is said about it


class Content(msgspec.Struct, frozen=True):
    """What of a device an expression can see, in plain values."""

    driver: str
    attributes: dict[str, str | int | bool] = {}  # by domain/name, versions left out
    versions: dict[str, str] = {}
    capacity: dict[str, str] = {}
    shared: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """The verdict on one device; text says why where it is ERROR or UNKNOWN."""

    verdict: Verdict
    text: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What an expression looks at and what it says of each device, or why it says nothing of any."""

    uses: Uses | None = None
    outcomes: list[Outcome] = []
    problem: str = ""
    passing: bool = False  # the problem is not the expression's: worth asking again


def available() -> bool:
    """Whether the engine is installed."""
    return importlib.util.find_spec("cel_expr_python") is not None


def content(device: DeviceFacts) -> Content:
    """What an expression can see of `device`."""
    driver = device.key.driver
    attributes = {_full_name(name, driver): value for name, value in _qualified_last(device.attributes)}
    return Content(
        driver=driver,
        attributes={name: value for name, value in attributes.items() if not isinstance(value, Version)},
        versions={name: str(value) for name, value in attributes.items() if isinstance(value, Version)},
        capacity={_full_name(name, driver): item.value for name, item in _qualified_last(device.capacity)},
        shared=device.shared,
    )


def _full_name(name: str, driver: str) -> str:
    return name if "/" in name else f"{driver}/{name}"


def _qualified_last(named: Mapping[str, _T]) -> list[tuple[str, _T]]:
    """Of a name that is published with and without the driver's domain, the one with it counts."""
    return sorted(named.items(), key=lambda item: "/" in item[0])


class _Program:
    """One compiled expression."""

    def __init__(self, expression: Any, uses: Uses) -> None:  # noqa: ANN401 - the engine has no type stubs
        self.expression = expression
        self.uses = uses


class Evaluator:
    """Compiles expressions and evaluates them in this process; each evaluation leaks up to 1 kB in the engine."""

    def __init__(self) -> None:
        from cel_expr_python import cel

        self._cel = cel
        self._environment = _environment(cel)
        self._programs: dict[str, _Program | str] = {}

    def evaluate(self, expression: str, devices: Sequence[Content]) -> Answer:
        """What `expression` says of each of `devices`; with none, only what it looks at."""
        program = self._programs.get(expression)
        if program is None:
            if len(self._programs) >= 1000:
                self._programs.clear()
            program = self._programs[expression] = self._compile(expression)
        if isinstance(program, str):
            return Answer(problem=program)
        return Answer(uses=program.uses, outcomes=[self._outcome(program, device) for device in devices])

    def _compile(self, text: str) -> _Program | str:
        try:
            expression = self._environment.compile(text)
            kind = expression.return_type().name()
            if kind not in ("BOOL", "DYN"):
                return f"cannot be evaluated here: the result is of type {kind.lower()}, not bool"
            adapted, uses = adapt(expression.serialize())
            return _Program(self._environment.deserialize(adapted), uses)
        except UnsupportedError as error:
            return f"cannot be evaluated here: {error}"
        except (RuntimeError, ValueError) as error:  # what the engine raises for text that it cannot read
            return f"cannot be evaluated here: {_first_line(str(error))}"

    def _outcome(self, program: _Program, device: Content) -> Outcome:
        try:
            data = _variables(device, program.uses)
        except (QuantityError, SemverError) as error:  # the API server lets no such slice in
            return Outcome(Verdict.ERROR, str(error))
        result = program.expression.eval(data={"device": data})
        kind = result.type()
        if kind == self._cel.Type.ERROR:
            return _failure(str(result.value()))
        if kind != self._cel.Type.BOOL:
            return Outcome(Verdict.ERROR, f"CEL result of type {kind.name().lower()} could not be converted to bool")
        return Outcome(Verdict.MATCH if result.value() else Verdict.NO_MATCH)


def _first_line(text: str) -> str:
    return text.partition("\n")[0].removeprefix("INVALID_ARGUMENT: ").removeprefix("ERROR: ")


_MISSING_KEY: Final = re.compile(r'NOT_FOUND: Key not found in map : "(.*)"', re.DOTALL)
_UNSUPPORTED: Final = "not supported: "


def _failure(text: str) -> Outcome:
    """The engine's error in the words of Kubernetes; what only this engine refuses is UNKNOWN."""
    missing = _MISSING_KEY.fullmatch(text)
    if missing is not None:
        return Outcome(Verdict.ERROR, f"no such key: {missing[1]}")
    code, _, words = text.partition(": ")
    if words.startswith("No matching overloads found"):
        return Outcome(Verdict.ERROR, "no such overload")
    if code in ("INTERNAL", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED") or words.startswith(_UNSUPPORTED):
        return Outcome(Verdict.UNKNOWN, f"cannot be evaluated here: {words}")
    return Outcome(Verdict.ERROR, words or text)


def _variables(device: Content, uses: Uses) -> dict[str, object]:
    attributes: dict[str, dict[str, object]] = {}
    capacity: dict[str, dict[str, object]] = {}
    for name, value in device.attributes.items():
        domain, bare = _split(name)
        attributes.setdefault(domain, {})[bare] = value
    # Only what is looked at is parsed: an answer must not depend on anything else.
    for name, text in device.versions.items():
        domain, bare = _split(name)
        if uses.whole or (domain, bare) in uses.attributes:
            attributes.setdefault(domain, {})[bare] = _version(Semver.parse(text))
    for name, text in device.capacity.items():
        domain, bare = _split(name)
        if uses.whole or (domain, bare) in uses.capacity:
            capacity.setdefault(domain, {})[bare] = _quantity(Quantity.parse(text))
    lacking: dict[str, dict[str, object]] = {domain: {} for domain in (device.driver, *uses.domains)}
    data: dict[str, object] = {"driver": device.driver, "allowMultipleAllocations": device.shared}
    for kind, found in zip(MAPS, (attributes, capacity), strict=True):
        data[kind] = found
        data[INDEXED + kind] = {**lacking, **found}
    return data


def _split(name: str) -> tuple[str, str]:
    domain, _, bare = name.partition("/")
    return domain, bare


# --- the functions of Kubernetes' own libraries ---


def _quantity(value: Quantity) -> dict[str, str]:
    fraction = value.value
    return {QUANTITY_MARK: f"{fraction.numerator}/{fraction.denominator}" if fraction.denominator > 1
            else str(fraction.numerator)}  # fmt: skip


def _version(value: Semver) -> dict[str, str]:
    return {VERSION_MARK: str(value)}


def _object(value: Mapping[str, str]) -> Quantity | Semver:
    if QUANTITY_MARK in value:
        return Quantity(Fraction(value[QUANTITY_MARK]))
    if VERSION_MARK in value:
        return Semver.parse(value[VERSION_MARK])
    raise ValueError("No matching overloads found")


def _as_quantity(value: Mapping[str, str]) -> Quantity:
    found = _object(value)
    if not isinstance(found, Quantity):
        raise ValueError("No matching overloads found")
    return found


def _as_version(value: Mapping[str, str]) -> Semver:
    found = _object(value)
    if not isinstance(found, Semver):
        raise ValueError("No matching overloads found")
    return found


def _compare(left: Mapping[str, str], right: Mapping[str, str]) -> int:
    one, other = _object(left), _object(right)
    if isinstance(one, Quantity) and isinstance(other, Quantity):
        return one.compare(other)
    if isinstance(one, Semver) and isinstance(other, Semver):
        return one.compare(other)
    raise ValueError("No matching overloads found")


def _parses(parse: Callable[[], object]) -> bool:
    try:
        parse()
    except (QuantityError, SemverError):
        return False
    return True


def _environment(cel: Any) -> Any:  # noqa: ANN401 - the engine has no type stubs
    kind = cel.Type
    extensions = ("bindings", "optional", "strings", "sets", "lists", "two-var-comprehensions")
    config = cel.NewEnvConfigFromYaml("name: dra\nextensions:\n" + "".join(f"- name: {name}\n" for name in extensions))

    def function(name: str, *overloads: tuple[Any, list[Any], Callable[..., object]], member: bool = True) -> Any:  # noqa: ANN401
        return cel.FunctionDecl(name, [
            cel.Overload(f"{name}_{index}", result, parameters, is_member=member, impl=implementation)
            for index, (result, parameters, implementation) in enumerate(overloads)
        ])  # fmt: skip

    a_map, text, truth, whole = kind.MAP, kind.STRING, kind.BOOL, kind.INT
    functions = [
        function("quantity", (a_map, [text], lambda t: _quantity(Quantity.parse(t))), member=False),
        function("isQuantity", (truth, [text], lambda t: _parses(lambda: Quantity.parse(t))), member=False),
        function("sign", (whole, [a_map], lambda q: _as_quantity(q).sign), member=False),
        function("isInteger", (truth, [a_map], lambda q: _as_quantity(q).is_integer)),
        function("asInteger", (whole, [a_map], lambda q: _as_quantity(q).as_integer())),
        function("asApproximateFloat", (kind.DOUBLE, [a_map], lambda q: _as_quantity(q).as_float())),
        function("add", (a_map, [a_map, a_map], lambda q, r: _quantity(_as_quantity(q) + _as_quantity(r))),
                 (a_map, [a_map, whole], lambda q, n: _quantity(_as_quantity(q) + Quantity.parse(str(n))))),
        function("sub", (a_map, [a_map, a_map], lambda q, r: _quantity(_as_quantity(q) - _as_quantity(r))),
                 (a_map, [a_map, whole], lambda q, n: _quantity(_as_quantity(q) - Quantity.parse(str(n))))),
        function("semver", (a_map, [text], lambda t: _version(Semver.parse(t))),
                 (a_map, [text, truth], lambda t, n: _version(Semver.parse(t, normalize=n))), member=False),
        function("isSemver", (truth, [text], lambda t: _parses(lambda: Semver.parse(t))),
                 (truth, [text, truth], lambda t, n: _parses(lambda: Semver.parse(t, normalize=n))), member=False),
        function("major", (whole, [a_map], lambda v: _as_version(v).major)),
        function("minor", (whole, [a_map], lambda v: _as_version(v).minor)),
        function("patch", (whole, [a_map], lambda v: _as_version(v).patch)),
        function("compareTo", (whole, [a_map, a_map], _compare)),
        function("isGreaterThan", (truth, [a_map, a_map], lambda one, other: _compare(one, other) > 0)),
        function("isLessThan", (truth, [a_map, a_map], lambda one, other: _compare(one, other) < 0)),
        function("find", (text, [text, text], _find)),
        function("findAll", (kind.LIST, [text, text], _find_all),
                 (kind.LIST, [text, text, whole], _find_all)),
        function("sum", (kind.DYN, [kind.LIST], _sum)),
        function("min", (kind.DYN, [kind.LIST], lambda items: _extreme(min, items))),
        function("max", (kind.DYN, [kind.LIST], lambda items: _extreme(max, items))),
        function("isSorted", (truth, [kind.LIST], _is_sorted)),
    ]  # fmt: skip
    return cel.NewEnv(config=config, variables={"device": kind.Map(kind.STRING, kind.DYN)}, functions=functions)


def _pattern(text: str) -> re.Pattern[str]:
    """RE2's meaning of a pattern, as far as Python's engine shares it."""
    try:
        if re.search(r"\(\?[=!<>]|\\[1-9pPCQEz]|\(\?[a-zA-Z-]*[sUm-]", text):
            raise ValueError(f"{_UNSUPPORTED}regular expression {text}")
        return re.compile(re.sub(r"(?<!\\)\$", r"\\Z", text), re.ASCII)
    except re.error as error:
        raise ValueError(f"{_UNSUPPORTED}regular expression {text}: {error}") from error


def _find(text: str, pattern: str) -> str:
    found = _pattern(pattern).search(text)
    return found[0] if found else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [match[0] for match in _pattern(pattern).finditer(text)]
    return found if limit < 0 else found[:limit]


def _alike(items: list[Any]) -> list[Any]:
    if len({type(item) for item in items}) > 1 or any(isinstance(item, dict | list) for item in items):
        raise ValueError("No matching overloads found")
    return items


def _sum(items: list[Any]) -> object:
    if any(isinstance(item, str | bool) for item in _alike(items)):
        raise ValueError("No matching overloads found")
    return sum(items)


def _extreme(choose: Callable[[list[Any]], object], items: list[Any]) -> object:
    if not items:
        raise ValueError(f"{choose.__name__} called on empty list")
    return choose(_alike(items))


def _is_sorted(items: list[Any]) -> bool:
    _alike(items)
    return all(one <= other for one, other in itertools.pairwise(items))
