"""What can a taint policy say? docs/taint-policy.md, from the structs of policy.py."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterator
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from claimscope.taints.policy import Policy
from claimscope.yamlfile import choices

EXAMPLE: Final = """\
mode: enforce                     # keep new work off unhealthy and lost GPUs
groups:
  NVIDIA-A100-SXM4-40GB: {mode: announce}   # but only tell of these
rules:
  thermal_slowdown_lasting: {mode: announce}
  gpu_lost: {no_execute: true}    # deletes the pods of a GPU that fell off the bus
budgets: {fleet_share: 0.05, group_share: 0.1}
rate: {least: 2, seconds: 1800}
node_taints: prefer               # for GPUs of the device plugin
pause:
- {group: NVIDIA-H100-80GB-HBM3, author: ann, reason: firmware roll-out, until: 2030-01-31T18:00:00Z}
"""

_HEAD: Final = """\
<!-- Written by `make docs` from exporter/claimscope/taints/policy.py. -->
# Taint policy

The file that `claimscope controller --taint-policy FILE` names, and `claimscope agent --taint-writer=local` likewise:
how far fencing goes, how much of it and how fast. [fencing.md](fencing.md) explains it. What a file leaves out has the
default. It is read again within seconds when it changes, also as a mounted ConfigMap. A mistake is an error with file,
line and column: at the start nothing runs, later the last good policy stays in force. `claimscope doctor controller
--taint-policy FILE` checks one.

```yaml
"""


def document() -> str:
    """The page, whole."""
    return _HEAD + EXAMPLE + "```\n" + "".join(_sections(Policy, "", "The whole file"))


def _sections(of: type[msgspec.Struct], path: str, title: str) -> Iterator[str]:
    """A table of one struct, and those of the structs in it."""
    about = " ".join((of.__doc__ or "").split())
    about = "" if of is Policy else f"{about}\n\n"
    rows, inner = [], []
    hints = get_type_hints(of, include_extras=True)
    for field in msgspec.structs.fields(of):
        kind = hints[field.name]
        key = f"{path}{field.name}"
        part, suffix = _struct_in(kind)
        if part is not None:
            inner.append((part, f"{key}{suffix}.", f"`{key}{suffix}`"))
        metas = [each for each in get_args(kind)[1:] if isinstance(each, Meta)] if _is_annotated(kind) else []
        meaning = " ".join(meta.description for meta in metas if meta.description) or f"See `{key}` below."
        rows.append(f"| `{key}` | {_default(field)} | {_values(kind, metas)} | {meaning} |\n")
    yield f"\n## {title}\n\n{about}| key | default | values | meaning |\n|---|---|---|---|\n{''.join(rows)}"
    for each in inner:
        yield from _sections(*each)


def _is_annotated(kind: Any) -> bool:  # noqa: ANN401 - a type expression
    return get_origin(kind) is Annotated


def _bare(kind: Any) -> Any:  # noqa: ANN401
    return get_args(kind)[0] if _is_annotated(kind) else kind


def _struct_in(kind: Any) -> tuple[type[msgspec.Struct] | None, str]:  # noqa: ANN401
    """The struct that a value is or has many of, and how its keys are written."""
    bare = _bare(kind)
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return bare, ""
    inside = [each for each in get_args(bare) if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    if not inside:
        return None, ""
    return inside[0], ".NAME" if get_origin(bare) is dict else "[]"


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    default = field.default if field.default is not msgspec.NODEFAULT else None
    match default:
        case None | ():
            return "unset"
        case tuple():
            return f"`[{', '.join(map(str, default))}]`"
        case "":
            return "empty"
        case bool():
            return f"`{str(default).lower()}`"
        case enum.Enum():
            return f"`{default.value}`"
        case msgspec.Struct():
            return "as below"
        case float():
            return f"`{default:g}`"
    return f"`{default}`"


def _values(kind: Any, metas: list[Meta]) -> str:  # noqa: ANN401
    words = choices(kind)
    if words:
        return ", ".join(f"`{word}`" for word in words)
    lowest = next((str(meta.ge) for meta in metas if meta.ge is not None), "")
    highest = next((str(meta.le) for meta in metas if meta.le is not None), "")
    if lowest and highest:
        return f"{lowest} to {highest}"
    if lowest:
        return f"{lowest} or more"
    bare = _bare(kind)
    if bare is datetime.datetime or datetime.datetime in map(_bare, get_args(bare)):
        return "a time such as `2030-01-31T18:00:00Z`"
    shapes = {bool: "`true`, `false`", str: "text", dict: "a mapping", tuple: "a list"}
    return shapes.get(get_origin(bare) or bare, "")
