"""What does a patch make of an object, and who manages which of its fields?

Pure functions on decoded JSON. Lists are atomic to server-side apply here, save sets of plain strings named in
`_SETS` and conditions, which are merged by their type; the real server merges some other lists of objects, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from claimscope.sim.api.errors import apply_conflict, bad_request, patch_failed

Path = tuple[str, ...]
Json = dict[str, Any]

# Parts of metadata that somebody manages; the others belong to the server.
_MANAGED_METADATA: Final = ("labels", "annotations", "finalizers", "ownerReferences")
_SETS: Final = {("metadata", "finalizers")}
_CONDITIONS: Final = ("status", "conditions")  # a map by type; each entry is one leaf here


# ---- Merge patch (RFC 7386) and JSON patch (RFC 6902) ------------------------------------------------------------


def merge_patched(target: Any, patch: Any) -> Any:  # noqa: ANN401 - any JSON
    """RFC 7386: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patched(merged.get(name), value)
    return merged


def json_patched(target: Json, operations: Sequence[Any]) -> Json:
    """RFC 6902. Raises Refused (422) where a test fails or a path does not exist."""
    if not isinstance(operations, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    result: Any = copy.deepcopy(target)
    for operation in operations:
        try:
            result = _operated(result, operation)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise patch_failed() from error
    if not isinstance(result, dict):
        raise patch_failed()
    return result


def _operated(document: Any, operation: Mapping[str, Any]) -> Any:  # noqa: ANN401
    verb, path = operation["op"], _pointer(operation["path"])
    if verb == "test":
        if _found(document, path) != operation.get("value"):
            raise ValueError("the test does not hold")
        return document
    if verb == "remove":
        return _removed(document, path)
    if verb == "add":
        return _added(document, path, copy.deepcopy(operation["value"]))
    if verb == "replace":
        _found(document, path)
        return _added(_removed(document, path), path, copy.deepcopy(operation["value"]))
    if verb in ("copy", "move"):
        source = _pointer(operation["from"])
        value = copy.deepcopy(_found(document, source))
        return _added(_removed(document, source) if verb == "move" else document, path, value)
    raise ValueError(verb)


def _pointer(text: str) -> Path:
    if text and not text.startswith("/"):
        raise ValueError(text)
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:])


def _found(document: Any, path: Path) -> Any:  # noqa: ANN401
    for part in path:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def _removed(document: Any, path: Path) -> Any:  # noqa: ANN401
    if not path:
        return None
    parent = _found(document, path[:-1])
    if isinstance(parent, list):
        del parent[int(path[-1])]
    else:
        del parent[path[-1]]
    return document


def _added(document: Any, path: Path, value: Any) -> Any:  # noqa: ANN401
    if not path:
        return value
    parent = _found(document, path[:-1])
    if isinstance(parent, list):
        at = len(parent) if path[-1] == "-" else int(path[-1])
        if at > len(parent):
            raise IndexError(at)
        parent.insert(at, value)
    else:
        parent[path[-1]] = value
    return document


# ---- Field managers --------------------------------------------------------------------------------------------


def leaves(content: Mapping[str, Any]) -> dict[Path, Any]:
    """Every managed leaf of an object with its value. Lists and empty objects are leaves; sets are one per member."""
    found: dict[Path, Any] = {}
    for name, part in content.items():
        if name == "metadata":
            for inner in _MANAGED_METADATA:
                if inner in part:
                    found.update(_leaves(part[inner], ("metadata", inner)))
        elif name not in ("kind", "apiVersion"):
            found.update(_leaves(part, (name,)))
    return found


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:  # noqa: ANN401
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _leaves(part, (*path, name))
    elif path in _SETS and isinstance(value, list):
        for member in value:
            yield (*path, str(member)), member
    elif path == _CONDITIONS and isinstance(value, list):
        for member in value:
            yield (*path, str(member.get("type", ""))), member
    else:
        yield path, value


def fields_v1(paths: Iterator[Path] | Sequence[Path] | set[Path]) -> Json:
    """The form in which managedFields says which leaves somebody manages."""
    tree: Json = {}
    for path in sorted(paths):
        here = tree
        for at, part in enumerate(path):
            here = here.setdefault(_field(path[:at], part), {})
    return tree


def _field(parent: Path, part: str) -> str:
    if parent == _CONDITIONS:
        return f'k:{{"type":"{part}"}}'
    return f'v:"{part}"' if parent in _SETS else f"f:{part}"


def paths_of(fields: Mapping[str, Any], path: Path = ()) -> Iterator[Path]:
    """The leaves that a fieldsV1 names."""
    for name, inner in fields.items():
        if name == ".":
            continue
        part = name[11:-2] if name.startswith('k:{"type":"') else name[3:-1] if name.startswith('v:"') else name[2:]
        if inner and set(inner) != {"."}:
            yield from paths_of(inner, (*path, part))
        else:
            yield (*path, part)


def dotted(path: Path) -> str:
    """A path as the server's messages write it."""
    return "".join(f".{part}" for part in path)


def updated_managers(
    before: Json | None, after: Json, *, manager: str, api_version: str, subresource: str, time: str
) -> list[Json]:
    """managedFields after a plain write: what it changed is the writer's, what is gone is nobody's."""
    old, new = leaves(before) if before else {}, leaves(after)
    changed = {path for path, value in new.items() if path not in old or old[path] != value}
    entries = [dict(entry) for entry in (before or {}).get("metadata", {}).get("managedFields") or ()]
    identity = (manager, "Update", subresource)
    mine: set[Path] = set(changed)
    others = []
    for entry in entries:
        held = {path for path in paths_of(entry.get("fieldsV1") or {}) if path in new}
        if _identity(entry) == identity:
            mine |= held
        elif held - changed:
            others.append({**entry, "fieldsV1": fields_v1(held - changed)})
    if mine:
        others.append(_entry(identity, api_version, time, mine))
    return others


def applied(
    before: Json | None,
    wanted: Json,
    *,
    manager: str,
    api_version: str,
    force: bool,
    time: str,
    subresource: str = "",
) -> Json:
    """The object after a server-side apply, with managedFields. Raises Refused (409) for others' fields."""
    identity = (manager, "Apply", subresource)
    new = leaves(wanted)
    entries = [dict(entry) for entry in (before or {}).get("metadata", {}).get("managedFields") or ()]
    present = leaves(before) if before else {}
    others: list[Json] = []
    formerly: set[Path] = set()
    elsewhere: set[Path] = set()
    conflicts: list[tuple[str, str]] = []
    for entry in entries:
        held = set(paths_of(entry.get("fieldsV1") or {}))
        if _identity(entry) == identity:
            formerly = held
            continue
        taken = {
            path
            for path in new
            for other in held
            if _overlap(path, other) and not (path in present and present[path] == new[path])
        }
        conflicts += [(_named(entry), dotted(path)) for path in sorted(taken)]
        kept = {other for other in held if not any(_overlap(other, path) for path in taken)}
        elsewhere |= kept
        if kept:
            others.append({**entry, "fieldsV1": fields_v1(kept)})
    if conflicts and not force:
        raise apply_conflict(conflicts)
    result = copy.deepcopy(before) if before else {}
    for path in sorted(formerly - set(new) - elsewhere):
        _drop(result, path)
    for path, value in new.items():
        _set(result, path, value)
    metadata = result.setdefault("metadata", {})
    for name in ("name", "namespace"):
        if name in wanted.get("metadata", {}):
            metadata[name] = wanted["metadata"][name]
    metadata["managedFields"] = [*others, _entry(identity, api_version, time, set(new))]
    return result


def _identity(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    return entry.get("manager", ""), entry.get("operation", ""), entry.get("subresource", "")


def _named(entry: Mapping[str, Any]) -> str:
    subresource = f' with subresource "{entry["subresource"]}"' if entry.get("subresource") else ""
    version = f" using {entry['apiVersion']}" if entry.get("operation") == "Update" else ""
    return f'"{entry.get("manager", "")}"{subresource}{version}'


def _entry(identity: tuple[str, str, str], api_version: str, time: str, paths: set[Path]) -> Json:
    manager, operation, subresource = identity
    entry = {
        "manager": manager,
        "operation": operation,
        "apiVersion": api_version,
        "time": time,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields_v1(paths),
    }
    return {**entry, "subresource": subresource} if subresource else entry


def _overlap(one: Path, other: Path) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _set(document: Json, path: Path, value: Any) -> None:  # noqa: ANN401
    here = document
    if path[:-1] == _CONDITIONS:
        _set_condition(document, path[-1], value)
        return
    for part in path[:-1]:
        inner = here.get(part)
        if path[:-1] in _SETS and part == path[-2]:
            members = here.setdefault(part, [])
            if value not in members:
                members.append(value)
            return
        if not isinstance(inner, dict):
            inner = here[part] = {}
        here = inner
    here[path[-1]] = copy.deepcopy(value)


def _set_condition(document: Json, of_type: str, value: Json) -> None:
    entries = document.setdefault("status", {}).setdefault("conditions", [])
    for at, entry in enumerate(entries):
        if entry.get("type") == of_type:
            entries[at] = copy.deepcopy(value)
            return
    entries.append(copy.deepcopy(value))


def _drop(document: Json, path: Path) -> None:
    parents: list[tuple[Json, str]] = []
    here: Any = document
    for part in path[:-1]:
        if not isinstance(here, dict) or part not in here:
            return
        parents.append((here, part))
        here = here[part]
    if path[:-1] == _CONDITIONS and isinstance(here, list):
        here[:] = [entry for entry in here if entry.get("type") != path[-1]]
    elif isinstance(here, list):
        if path[-1] in here:
            here.remove(path[-1])
    elif isinstance(here, dict):
        here.pop(path[-1], None)
    for parent, part in reversed(parents):
        if parent[part] or (parent is document):
            break
        del parent[part]
