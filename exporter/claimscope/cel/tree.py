"""Which parts of a device does a compiled CEL expression look at, and where must cel-cpp be told to act as cel-go?

Works on the syntax tree that the engine serialises (cel.expr.CheckedExpr of cel-spec, in protobuf's wire format), so
that strings, comments, macros and variables are what they are and no text has to be guessed at. The tree is changed
in two places:

* `a == b`: cel-go raises `no such overload` where `a` is a version or quantity and `b` is neither that nor null
  (k8s.io/apiserver/pkg/cel Semver.Equal). Here both are maps, for which cel-cpp would say false.
* `device.attributes[d]` and `device.capacity[d]`: a domain that a device lacks is an empty map in Kubernetes, and yet
  `d in device.attributes` is false. So indexing is led to a second map that has the empty domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from claimscope.cel.wire import Message

MAPS: Final = ("attributes", "capacity")
INDEXED: Final = "@"  # prefix of the map that has the empty domains
VERSION_MARK: Final = "$v"
QUANTITY_MARK: Final = "$q"

_LARGEST_TREE: Final = 1 << 20

# Numbers of the members of cel.expr.Expr and of the messages in it.
_CONST, _IDENT, _SELECT, _CALL, _LIST, _STRUCT, _COMPREHENSION = 3, 4, 5, 6, 7, 8, 9
_STRING_VALUE = 6
_INDEX_CALLS: Final = frozenset({"_[_]", "_[?_]", "_?._"})
_NEVER_OBJECTS: Final = frozenset({
    "_&&_", "_||_", "!_", "_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "@in", "size", "type", "int", "uint", "double",
    "string", "_+_", "_-_", "_*_", "_/_", "_%_", "-_", "hasValue", "lowerAscii", "upperAscii", "compareTo", "asInteger",
})  # fmt: skip


class UnsupportedError(ValueError):
    """The expression asks for something that is not known here, so that no answer is given."""


class Uses(msgspec.Struct, frozen=True):
    """What an expression looks at, besides the driver; two devices that agree on it get the same answer."""

    whole: bool = False  # all of attributes and capacity
    shared: bool = False  # allowMultipleAllocations
    attributes: list[tuple[str, str]] = []  # domain, name
    capacity: list[tuple[str, str]] = []
    domains: list[str] = []  # every text that may be a domain: empty maps stand under those that a device lacks


@dataclass(frozen=True, slots=True)
class _Device:
    """The variable `device`."""


@dataclass(frozen=True, slots=True)
class _Map:
    """`device.attributes` or `device.capacity`."""

    kind: str


@dataclass(frozen=True, slots=True)
class _Domain:
    """`device.attributes["domain"]`, optional or not."""

    kind: str
    name: str


_Shape = _Device | _Map | _Domain | None
_Scope = Mapping[str, _Shape]


def adapt(serialized: bytes) -> tuple[bytes, Uses]:
    """The tree changed to act as Kubernetes' evaluator does, and what it looks at."""
    envelope = Message.decode(serialized)
    checked = envelope.message(2)
    root = checked.message(4) if checked is not None else None
    if root is None:
        raise UnsupportedError("the engine serialises expressions in a form that is not known here")
    walk = _Walk()
    walk.value(root, {})
    encoded = envelope.encode()
    if len(encoded) > _LARGEST_TREE:
        raise UnsupportedError("comparisons are nested too deeply")
    return encoded, walk.uses()


class _Walk:
    def __init__(self) -> None:
        self._whole = False
        self._shared = False
        self._names: dict[str, set[tuple[str, str]]] = {kind: set() for kind in MAPS}
        self._texts: set[str] = set()
        self._next_id = 1_000_000  # beyond those of the parser, which counts from 1

    def uses(self) -> Uses:
        return Uses(
            whole=self._whole,
            shared=self._shared,
            attributes=sorted(self._names["attributes"]),
            capacity=sorted(self._names["capacity"]),
            domains=sorted(self._texts),
        )

    def value(self, expression: Message, scope: _Scope) -> None:
        """Visits an expression whose result is used as it is, not as a step on the way to an attribute."""
        self._plain(self._visit(expression, scope))

    def _plain(self, shape: _Shape) -> None:
        match shape:
            case _Device():
                raise UnsupportedError("the expression uses device as a whole")
            case _Map(kind):
                raise UnsupportedError(f"the expression uses device.{kind} as a whole")
            case _Domain():
                self._whole = True
            case None:
                pass

    def _visit(self, expression: Message, scope: _Scope) -> _Shape:
        for item in expression.fields:
            match item.number:
                case 3:
                    text = expression.messages(_CONST)[-1].text(_STRING_VALUE)
                    if text is not None:
                        self._texts.add(text)
                case 4:
                    return self._ident(expression.messages(_IDENT)[-1].text(1) or "", scope)
                case 5:
                    return self._select(expression.messages(_SELECT)[-1], scope)
                case 6:
                    return self._call(expression, expression.messages(_CALL)[-1], scope)
                case 7:
                    for element in expression.messages(_LIST)[-1].messages(1):
                        self.value(element, scope)
                case 8:
                    for entry in expression.messages(_STRUCT)[-1].messages(2):
                        for part in (*entry.messages(3), *entry.messages(4)):
                            self.value(part, scope)
                case 9:
                    return self._comprehension(expression.messages(_COMPREHENSION)[-1], scope)
                case _:
                    pass
        return None

    @staticmethod
    def _ident(name: str, scope: _Scope) -> _Shape:
        if name in scope:
            return scope[name]
        return _Device() if name == "device" else None

    def _select(self, select: Message, scope: _Scope) -> _Shape:
        operand, name = select.messages(1)[-1], select.text(2) or ""
        match self._visit(operand, scope):
            case _Device():
                if name in MAPS:
                    return None if select.integer(3) else _Map(name)
                if name not in ("driver", "allowMultipleAllocations"):
                    raise UnsupportedError(f"device.{name} is not known here")
                self._shared |= name == "allowMultipleAllocations"
            case _Map(kind):
                if select.integer(3):
                    raise UnsupportedError(f"has(device.{kind}.{name}) is not known here")
                self._texts.add(name)
                self._lead_to_indexed(operand, kind)
                return _Domain(kind, name)
            case _Domain(kind, domain):
                self._names[kind].add((domain, name))
            case None:
                pass
        return None

    def _call(self, expression: Message, call: Message, scope: _Scope) -> _Shape:
        function, target, arguments = call.text(2) or "", call.message(1), call.messages(3)
        if function in _INDEX_CALLS and len(arguments) == 2:
            return self._index(arguments[0], arguments[1], scope)
        if function == "@in" and len(arguments) == 2:
            self._in(arguments[0], arguments[1], scope)
            return None
        parts = arguments if target is None else [target, *arguments]
        for part in parts:
            shape = self._visit(part, scope)
            if isinstance(shape, _Map) and function == "size":
                self._whole = True
            else:
                self._plain(shape)
        if function == "_==_" and len(arguments) == 2:
            self._guard_equality(expression, *arguments)
        return None

    def _index(self, container: Message, key: Message, scope: _Scope) -> _Shape:
        shape, name = self._visit(container, scope), _text(key)
        self.value(key, scope)
        match shape:
            case _Device():
                raise UnsupportedError("the expression indexes device")
            case _Map(kind):
                self._lead_to_indexed(container, kind)
                if name is not None:
                    return _Domain(kind, name)
                if key.message(_CALL) is not None:
                    raise UnsupportedError(f"the expression computes a domain of device.{kind}")
                self._whole = True
            case _Domain(kind, domain):
                if name is None:
                    self._whole = True
                else:
                    self._names[kind].add((domain, name))
            case None:
                pass
        return None

    def _in(self, key: Message, container: Message, scope: _Scope) -> None:
        self.value(key, scope)
        shape, name = self._visit(container, scope), _text(key)
        match shape:
            case _Device():
                raise UnsupportedError("the expression uses device as a whole")
            case _Domain(kind, domain) if name is not None:
                self._names[kind].add((domain, name))
            case _Domain() | _Map():
                self._whole = True
            case None:
                pass

    def _comprehension(self, loop: Message, scope: _Scope) -> _Shape:
        ranged, start = loop.messages(2)[-1], loop.messages(4)[-1]
        listed = ranged.message(_LIST)
        accumulator = loop.text(3) or ""
        if listed is not None and not listed.messages(1):  # cel.bind(name, start, result) is a loop over nothing
            shape = self._visit(start, scope)
            if isinstance(shape, _Device | _Map):
                raise UnsupportedError("the expression binds device or one of its maps to a name")
            inner: dict[str, _Shape] = {**scope, accumulator: shape}
        else:
            shape = self._visit(ranged, scope)
            if isinstance(shape, _Device):
                raise UnsupportedError("the expression ranges over device")
            self._whole |= shape is not None
            self.value(start, scope)
            inner = {**scope, accumulator: None}
        for number in (1, 8):
            name = loop.text(number)
            if name:
                inner[name] = None
        for number in (5, 6):
            for part in loop.messages(number):
                # An alias that is only handed on (the step of a bind) is no use of it.
                if _name(part) != accumulator:
                    self.value(part, inner)
        return self._visit(loop.messages(7)[-1], inner)

    def _lead_to_indexed(self, container: Message, kind: str) -> None:
        select = container.message(_SELECT)
        if select is None:
            raise UnsupportedError(f"the expression uses device.{kind} by another name")
        select.replace_text(2, INDEXED + kind)

    def _guard_equality(self, expression: Message, left: Message, right: Message) -> None:
        call = left.message(_CALL)
        if left.message(_CONST) is not None or left.message(_LIST) is not None:
            return
        if call is not None and call.text(2) in _NEVER_OBJECTS:
            return
        equality = Message(list(expression.fields))
        wrong = self._new_call("_||_", *(self._lone_mark(mark, left, right) for mark in (VERSION_MARK, QUANTITY_MARK)))
        not_null = self._new_call("_!=_", right, self._new(_CONST, Message().add(1, 0)))
        condition = self._new_call("_&&_", self._is_map(left), self._new_call("_&&_", wrong, not_null))
        # A map is not less than anything: the engine's own error for it is the one that is wanted.
        refusal = self._new_call("_<_", left, right)
        expression.fields[:] = self._new_call("_?_:_", condition, refusal, equality).fields

    def _lone_mark(self, mark: str, left: Message, right: Message) -> Message:
        same = self._new_call("_&&_", self._is_map(right), self._has(mark, right))
        return self._new_call("_&&_", self._has(mark, left), self._new_call("!_", same))

    def _has(self, mark: str, operand: Message) -> Message:
        return self._new_call("@in", self._new(_CONST, Message().add(_STRING_VALUE, mark)), operand)

    def _is_map(self, operand: Message) -> Message:
        return self._new_call("_==_", self._new_call("type", operand), self._new(_IDENT, Message().add(1, "map")))

    def _new_call(self, function: str, *arguments: Message) -> Message:
        call = Message().add(2, function)
        for argument in arguments:
            call.add(3, argument)
        return self._new(_CALL, call)

    def _new(self, kind: int, content: Message) -> Message:
        self._next_id += 1
        return Message().add(2, self._next_id).add(kind, content)


def _text(expression: Message) -> str | None:
    constant = expression.message(_CONST)
    return constant.text(_STRING_VALUE) if constant is not None else None


def _name(expression: Message) -> str | None:
    ident = expression.message(_IDENT)
    return ident.text(1) if ident is not None else None
