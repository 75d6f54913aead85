"""What does the simulated API server hold, and what changed after a given resourceVersion?

Objects are kept as bytes without `kind` and `apiVersion`, so that the same ones can be served in several versions of
a group. Every change has a version of its own; a table remembers its last changes in order, and a reader finds its
place among them by bisection once and by position from then on.
"""

from __future__ import annotations

import base64
import re
import sys
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from claimscope.sim.api.errors import bad_request, continue_expired, no_resource

MAX_HISTORY: Final = 10_000  # changes remembered of each kind
_SNAPSHOTS: Final = 8  # paged lists under way at a time; an older one is answered as after a compaction

Key = tuple[str, str]  # namespace ("" where there is none), name


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One row: a kind in one version of one group ("" is the core group)."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = False
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # field selector -> path in the object
    status: bool = True  # has /status, and other writes do not touch it
    scale: bool = False  # has /scale, by which spec.replicas alone is patched; the answer is the whole object
    status_on_create: bool = False  # what a POST says of the status stands
    generation: bool = True  # metadata.generation counts changes of the spec
    immutable: bool = False  # the spec cannot be changed
    put_creates: bool = False  # PUT on what is not there creates it
    unconditional: bool = True  # PUT works without a resourceVersion
    grace_seconds: int = 0  # how long a deletion waits for the kubelet once the object has a node

    @property
    def api_version(self) -> str:
        """As objects say it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """As error messages say it: resourceclaims.resource.k8s.io."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def head(self) -> bytes:
        """The first bytes of an object of this kind, before the stored ones without their brace."""
        return f'{{"kind":"{self.kind}","apiVersion":"{self.api_version}",'.encode()


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as it was at one version."""

    version: int
    key: Key
    tail: bytes  # the object without kind and apiVersion
    labels: Mapping[str, str]
    fields: tuple[str, ...]  # values of the kind's field selectors, in their order

    def body(self, kind: Kind) -> bytes:
        """The whole object in the version of `kind`."""
        return kind.head + self.tail[1:]

    def at_version(self, version: int) -> Stored:
        """The same object with another resourceVersion, as the end of a watch's interest is told."""
        content = msgspec.json.decode(self.tail)
        content["metadata"]["resourceVersion"] = str(version)
        return Stored(version, self.key, msgspec.json.encode(content), self.labels, self.fields)


@dataclass(frozen=True, slots=True)
class Change:
    """One write."""

    version: int
    type: str  # ADDED, MODIFIED, DELETED
    now: Stored  # of a deletion: the last state with the deletion's version
    before: Stored | None


# ---- Selectors -------------------------------------------------------------------------------------------------

_TERM: Final = re.compile(
    r"\s*(?:(?P<absent>!)\s*(?P<gone>[^\s,()=!]+)"
    r"|(?P<key>[^\s,()=!]+)\s*(?:(?P<set>\bin|\bnotin)\s*\((?P<values>[^)]*)\)|(?P<op>==|=|!=)\s*(?P<value>[^\s,()=!]*))?)"
    r"\s*(?:,|$)"
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term of a selector; `values` None asks only for the presence of the key."""

    key: str
    values: frozenset[str] | None
    negated: bool

    def holds(self, found: str | None) -> bool:
        """Whether a value (None: absent) meets the term. An absent label meets negated terms."""
        inside = found is not None if self.values is None else found in self.values
        return inside != self.negated


def label_requirements(text: str) -> tuple[Requirement, ...]:
    """The terms of a labelSelector. Raises Refused for what cannot be parsed."""
    found, at = [], 0
    while at < len(text):
        term = _TERM.match(text, at)
        if term is None or term.end() == at:
            raise bad_request(
                f"unable to parse requirement: found '{text[at:]}', expected: !, identifier, or 'end of string'"
            )
        at = term.end()
        if term["absent"]:
            found.append(Requirement(term["gone"], None, negated=True))
        elif term["set"]:
            values = frozenset(value.strip() for value in term["values"].split(","))
            found.append(Requirement(term["key"], values, negated=term["set"] == "notin"))
        elif term["op"]:
            found.append(Requirement(term["key"], frozenset((term["value"],)), negated=term["op"] == "!="))
        else:
            found.append(Requirement(term["key"], None, negated=False))
    return tuple(found)


def field_requirements(text: str, kind: Kind) -> tuple[Requirement, ...]:
    """The terms of a fieldSelector. Raises Refused for a field that the kind has no selector for."""
    found = []
    for term in filter(None, text.split(",")):
        parts = re.match(r"^([^=!]+)(==|=|!=)(.*)$", term)
        if parts is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{term}'")
        name, operator, value = parts.groups()
        if name not in kind.fields and name not in ("metadata.name", "metadata.namespace"):
            raise bad_request(
                f'Unable to find "{kind.group or ""}/{kind.version}, Resource={kind.plural}" that match label selector '
                f'"", field selector "{text}": field label not supported: {name}'
            )
        found.append(Requirement(name, frozenset((value,)), negated=operator == "!="))
    return tuple(found)


class Selection:
    """Which objects a list or a watch is about."""

    def __init__(self, kind: Kind, namespace: str = "", field_selector: str = "", label_selector: str = "") -> None:
        self._namespace = namespace
        self._labels = label_requirements(label_selector)
        places = {name: at for at, name in enumerate(kind.fields)}
        self._keys: list[tuple[int, Requirement]] = []
        self._fields: list[tuple[int, Requirement]] = []
        for term in field_requirements(field_selector, kind):
            if term.key in places:
                self._fields.append((places[term.key], term))
            else:
                self._keys.append((("metadata.namespace", "metadata.name").index(term.key), term))
        self.by_content = bool(self._labels or self._fields)  # an object can leave it while it stays
        self.everything = not (self.by_content or namespace or self._keys)

    def __contains__(self, stored: Stored) -> bool:
        return self.everything or (
            (not self._namespace or stored.key[0] == self._namespace)
            and all(term.holds(stored.key[place]) for place, term in self._keys)
            and all(term.holds(stored.fields[place]) for place, term in self._fields)
            and all(term.holds(stored.labels.get(term.key)) for term in self._labels)
        )

    def seen(self, change: Change) -> tuple[str, Stored] | None:
        """The change as this selection sees it: one that leaves it is DELETED, one that comes in is ADDED."""
        if self.everything:
            return change.type, change.now
        after = change.type != "DELETED" and change.now in self
        before = change.before is not None and change.before in self
        if after:
            return ("MODIFIED" if before else "ADDED"), change.now
        if not before or change.before is None:
            return None
        if change.type == "DELETED":
            return "DELETED", change.now
        return "DELETED", change.before.at_version(change.version)


# ---- Tables ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Table:
    """All objects of one kind, and its last changes."""

    kind: Kind  # the first version of the kind that is served
    objects: dict[Key, Stored] = field(default_factory=dict)
    forgotten: int = 0  # the last version whose change is no longer remembered
    _changes: list[Change] = field(default_factory=list)
    _first: int = 0  # position of _changes[0], counted from the first change ever
    _ordered: list[Stored] | None = None

    def remember(self, change: Change, limit: int) -> None:
        """Adds a change; the oldest are forgotten in blocks, which keeps it cheap."""
        self._changes.append(change)
        self._ordered = None
        if len(self._changes) >= 2 * limit:
            self.forgotten = self._changes[limit - 1].version
            self._first += limit
            del self._changes[:limit]

    def forget(self, version: int) -> None:
        """Drops all changes; `version` is the newest one that cannot be told any more."""
        self._first += len(self._changes) + 1  # a gap: whoever has read everything has missed something, too
        self._changes.clear()
        self._ordered = None
        self.forgotten = version

    def position(self, version: int) -> int:
        """Where a reader stands that knows everything up to `version`."""
        return self._first + bisect_right(self._changes, version, key=lambda change: change.version)

    def since(self, position: int, limit: int) -> Sequence[Change] | None:
        """The next changes from a position on; None where some of them are forgotten."""
        if position < self._first:
            return None
        start = position - self._first
        return self._changes[start : start + limit]

    @property
    def last(self) -> Change | None:
        """The newest remembered change."""
        return self._changes[-1] if self._changes else None

    def ordered(self) -> list[Stored]:
        """Every object in the order of the store's keys. Not to be changed."""
        if self._ordered is None:
            self._ordered = [self.objects[key] for key in sorted(self.objects)]
        return self._ordered


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to a list."""

    version: int
    items: list[Stored]
    following: str  # the continue token, "" at the end
    remaining: int


class Store:
    """Tables and the version they share."""

    def __init__(
        self, kinds: Sequence[Kind], *, on_change: Callable[[Table], None], max_history: int = MAX_HISTORY
    ) -> None:
        self.kinds = tuple(kinds)
        self.version = 1
        self.oldest = 1  # a watch or a continued list from an earlier version is refused
        self._on_change = on_change
        self._max_history = max_history
        self._tables: dict[tuple[str, str], Table] = {}
        for kind in kinds:
            self._tables.setdefault((kind.group, kind.plural), Table(kind))
        self._snapshots: OrderedDict[tuple[str, str, int], list[Stored]] = OrderedDict()

    def table(self, kind: Kind) -> Table:
        """The table of a kind; its versions share one. Raises KeyError where the kind is not served."""
        return self._tables[(kind.group, kind.plural)]

    def find(self, group: str, version: str, plural: str) -> Kind:
        """The row that a path means. Raises Refused."""
        for kind in self.kinds:
            if (kind.group, kind.version, kind.plural) == (group, version, plural):
                return kind
        raise no_resource()

    def next_version(self) -> int:
        """The version that the next write gets."""
        return self.version + 1

    def write(self, kind: Kind, content: Mapping[str, Any]) -> Stored:
        """Stores an object as it is, under the next version."""
        table = self.table(kind)
        self.version += 1
        stored = stored_of(table.kind, content, self.version)
        before = table.objects.get(stored.key)
        table.objects[stored.key] = stored
        event = "ADDED" if before is None else "MODIFIED"
        table.remember(Change(self.version, event, stored, before), self._max_history)
        self._on_change(table)
        return stored

    def remove(self, kind: Kind, key: Key, content: Mapping[str, Any] | None = None) -> Stored:
        """Takes an object away, in its last state or the one given. Raises KeyError where there is none."""
        table = self.table(kind)
        before = table.objects.pop(key)
        self.version += 1
        gone = before.at_version(self.version) if content is None else stored_of(table.kind, content, self.version)
        table.remember(Change(self.version, "DELETED", gone, before), self._max_history)
        self._on_change(table)
        return gone

    def load(self, kind: Kind, objects: Iterable[Mapping[str, Any] | bytes]) -> int:
        """Stores many objects at once without telling watches, which must list again (410). Returns the number."""
        table = self.table(kind)
        first = self.version
        for item in objects:
            self.version += 1
            stored = stored_of(table.kind, _shallow(item) if isinstance(item, bytes) else item, self.version)
            table.objects[stored.key] = stored
        table.forget(self.version)
        self._on_change(table)
        return self.version - first

    def compact(self) -> None:
        """Refuses watches and continued lists from before now; open watches go on."""
        self.version += 1
        self.oldest = self.version
        self._snapshots.clear()

    def page(self, kind: Kind, selection: Selection, limit: int, token: str) -> Page:
        """One page of a list; later pages show the state of the first one. Raises Refused."""
        table = self.table(kind)
        version, start = _token_decoded(token) if token else (self.version, None)
        if version == self.version:
            objects = table.ordered()
        else:
            kept = self._snapshots.get((kind.group, kind.plural, version))
            if kept is None:
                raise continue_expired()
            objects = kept
        first = 0 if start is None else bisect_right(objects, start, key=lambda stored: stored.key)
        if not limit and not first:
            return Page(version, objects if selection.everything else [s for s in objects if s in selection], "", 0)
        items: list[Stored] = []
        at = first
        while at < len(objects) and (not limit or len(items) < limit):
            if objects[at] in selection:
                items.append(objects[at])
            at += 1
        while at < len(objects) and objects[at] not in selection:
            at += 1
        if at == len(objects):
            return Page(version, items, "", 0)
        self._snapshots[(kind.group, kind.plural, version)] = objects
        while len(self._snapshots) > _SNAPSHOTS:
            self._snapshots.popitem(last=False)
        remaining = len(objects) - at if selection.everything else 0
        return Page(version, items, _token_encoded(version, items[-1].key), remaining)


def stored_of(kind: Kind, content: Mapping[str, Any], version: int) -> Stored:
    """The stored form of an object; `content` may hold msgspec.Raw in place of whole top-level parts."""
    meta = content["metadata"]
    rest = {name: part for name, part in content.items() if name not in ("kind", "apiVersion", "metadata")}
    tail = msgspec.json.encode({"metadata": {**meta, "resourceVersion": str(version)}, **rest})
    return Stored(
        version,
        (sys.intern(meta.get("namespace") or ""), meta["name"]),
        tail,
        {sys.intern(name): sys.intern(value) for name, value in (meta.get("labels") or {}).items()} or _NO_LABELS,
        tuple(sys.intern(_at(content, path)) for path in kind.fields.values()),
    )


_NO_LABELS: Final[Mapping[str, str]] = {}
_PARTS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _shallow(raw: bytes) -> dict[str, Any]:
    parts: dict[str, Any] = {**_PARTS.decode(raw)}
    parts["metadata"] = msgspec.json.decode(parts["metadata"])
    return parts


def _at(content: Mapping[str, Any], path: tuple[str, ...]) -> str:
    here: Any = content.get(path[0])
    for part in path[1:]:
        if isinstance(here, msgspec.Raw):  # only as deep as the path goes
            here = _PARTS.decode(here) if bytes(here).startswith(b"{") else None
        here = here.get(part) if isinstance(here, dict) else None
    if isinstance(here, msgspec.Raw):
        here = msgspec.json.decode(here)
    if isinstance(here, bool):
        return "true" if here else "false"
    return here if isinstance(here, str) else ""


def _token_encoded(version: int, last: Key) -> str:
    fields = {"v": "meta.k8s.io/v1", "rv": version, "start": "/".join(last)}
    return base64.urlsafe_b64encode(msgspec.json.encode(fields)).decode().rstrip("=")


def _token_decoded(token: str) -> tuple[int, Key]:
    try:
        fields = msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        namespace, _, name = fields["start"].partition("/")
        return int(fields["rv"]), (namespace, name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise bad_request(f"continue key is not valid: {error}") from error
