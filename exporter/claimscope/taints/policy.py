"""What may be fenced, how hard, how much of it and how fast?

One YAML file; what it leaves out has the defaults below. It is checked when it is read, with line and column.
"""

from __future__ import annotations

import datetime
import enum
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml
from msgspec import Meta

from claimscope.config import ConfigError, did_you_mean
from claimscope.health.model import Severity
from claimscope.health.rules import RULE_BY_KEY
from claimscope.taints.model import Mode

OVERRIDE_DAYS_MAX: Final = 30
_FILE_BYTES_MAX: Final = 1 << 20
_RANK: Final = {mode: rank for rank, mode in enumerate(Mode)}

# What the driver or the hardware itself says. The rest is inferred from measurements, and a node's budget bounds it.
VERDICT_RULES: Final = frozenset({
    "recovery_action", "recovery_action_reboot", "reset_failed", "gpu_lost", "gpu_missing", "reset_required",
    "xid_lost", "xid_fatal", "xid_needs_reboot", "xid_needs_repair", "xid_repeat_fatal", "driver_event_fatal",
    "sram_ecc_threshold", "row_remap_failure", "retired_pages_many",
})  # fmt: skip

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0, le=30 * 86400)]
Moment = Annotated[datetime.datetime, Meta(tz=True)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class GroupPolicy(_Part, frozen=True):
    """Of one group of nodes, by the value of the label `node_group_label`."""

    mode: Mode | None = None


class RulePolicy(_Part, frozen=True):
    """Of one health rule."""

    mode: Mode | None = None
    no_execute: bool = False  # after NoSchedule has stood for a while, the pods on the device are deleted


class Budgets(_Part, frozen=True):
    """How many GPUs may be kept from work at once, by whomever. Each allows one at least."""

    node_share: Share = 0.5  # for rules that infer; what the driver itself says is not bounded per node
    group_share: Share = 0.2
    fleet_share: Share = 0.1


class Rate(_Part, frozen=True):
    """How many GPUs may be newly fenced within `seconds`."""

    least: Count = 3
    share: Share = 0.02
    seconds: Seconds = 600.0


class Systemic(_Part, frozen=True):
    """When one rule on many nodes is taken for one cause outside of the GPUs: it fences no more until acknowledged."""

    nodes: Annotated[int, Meta(ge=1)] = 5
    share: Share = 0.05
    least_nodes: Annotated[int, Meta(ge=1)] = 3  # below it the share says nothing: 5 % of ten nodes are none
    seconds: Seconds = 600.0


class BreakerPolicy(_Part, frozen=True):
    """When nothing is fenced any more: GPUs to be fenced, or just fenced, within the rate's time."""

    share: Share = 0.05
    least: Count = 8  # one node's GPUs
    half_open_seconds: Seconds = 1800.0


class NoExecutePolicy(_Part, frozen=True):
    """The second step of rules with `no_execute`. Pods are deleted without regard to disruption budgets."""

    after_seconds: Seconds = 300.0
    pods_max: Count = 1  # of one device


class Override(_Part, frozen=True):
    """What a human decides on, for a time."""

    do: Literal["ignore", "pin_unhealthy"]
    until: Moment
    author: Annotated[str, Meta(min_length=1)]
    uuid: str = ""  # "": every device
    rule: str = ""  # "": every rule
    reason: str = ""


class Pause(_Part, frozen=True):
    """No new fences, here or everywhere; lifting goes on."""

    author: Annotated[str, Meta(min_length=1)]
    node: str = ""
    group: str = ""  # node and group empty: everywhere
    until: Moment | None = None
    reason: str = ""


class Policy(_Part, frozen=True):
    """The file."""

    mode: Mode = Mode.ANNOUNCE
    groups: dict[str, GroupPolicy] = {}
    rules: dict[str, RulePolicy] = {}
    node_group_label: str = "nvidia.com/gpu.product"
    budgets: Budgets = Budgets()
    rate: Rate = Rate()
    cap: Count = 2000  # rules of any effect
    systemic: Systemic = Systemic()
    breaker: BreakerPolicy = BreakerPolicy()
    no_execute: NoExecutePolicy = NoExecutePolicy()
    stale_seconds: Annotated[float, Meta(ge=30, le=86400)] = 120.0
    stale_share: Share = 0.2  # more silent agents than this: no new blocking fences
    deleted_ignore_seconds: Seconds = 3600.0  # how long a fence stays away that a human took away
    overrides: tuple[Override, ...] = ()
    pause: tuple[Pause, ...] = ()

    def mode_of(self, group: str, rule: str) -> Mode:
        """How far a rule goes in a group: what group and rule say goes before the default, the milder of both first."""
        own = self.rules.get(rule)
        theirs = self.groups.get(group)
        said = [each.mode for each in (own, theirs) if each is not None and each.mode is not None]
        return milder(said) if said else self.mode

    def evicts(self, rule: str) -> bool:
        """Whether somebody opted in to NoExecute for a rule."""
        own = self.rules.get(rule)
        return own is not None and own.no_execute


def milder(modes: Iterable[Mode]) -> Mode:
    """The one of them that does least."""
    return min(modes, key=_RANK.__getitem__)


def effect_of(mode: Mode, severity: Severity) -> str | None:
    """What a taint of this severity does in a mode; None: there is none."""
    if mode is Mode.OBSERVE or severity is Severity.OK:
        return None
    return "NoSchedule" if mode is Mode.ENFORCE and severity in (Severity.UNHEALTHY, Severity.LOST) else "None"


# --- reading the file ---


def read_policy(text: str, name: str, now_wall: float) -> Policy:
    """The policy of a YAML file; raises ConfigError with file, line, column and what to write instead."""
    if len(text) > _FILE_BYTES_MAX:
        raise ConfigError(f"{name}: more than {_FILE_BYTES_MAX} bytes: this is not a policy")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
        raise ConfigError(f"{at}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    if root is None:
        return Policy()
    _check(root, value, Policy, name)
    policy = msgspec.convert(value, Policy)
    _check_meaning(root, policy, name, now_wall)
    return policy


def _at(name: str, node: yaml.Node) -> str:
    return f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _check(node: yaml.Node, value: Any, kind: Any, name: str) -> None:  # noqa: ANN401 - any value of any type
    """Walks text and types side by side, so that an error can say where it is."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        _check_struct(node, value, kind, name)
        return
    origin = get_origin(kind)
    if origin is dict and isinstance(node, yaml.MappingNode):
        for key_node, value_node in _pairs(node, name):
            _check(value_node, value[yaml.safe_load(yaml.serialize(key_node))], get_args(kind)[1], name)
        return
    if origin is tuple and isinstance(node, yaml.SequenceNode):
        for entry, part in zip(node.value, value, strict=True):
            _check(entry, part, get_args(kind)[0], name)
        return
    choices = _choices(kind)
    if choices and value is not None and (not isinstance(value, str) or value not in choices):
        found = node.value if isinstance(node, yaml.ScalarNode) else value
        raise ConfigError(f"{_at(name, node)}: unknown value `{found}`: {did_you_mean(str(found), choices)}")
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{_at(name, node)}: `{_shown(node)}`: {error}") from error


def _shown(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else "a list or mapping"


def _pairs(node: yaml.MappingNode, name: str) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    seen: set[str] = set()
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
            raise ConfigError(f"{_at(name, key_node)}: a key must be a word: put it into quotes")
        if key_node.value in seen:
            raise ConfigError(f"{_at(name, key_node)}: key `{key_node.value}` stands here a second time: remove one")
        seen.add(key_node.value)
        yield key_node, value_node


def _check_struct(node: yaml.Node, value: Any, kind: type[msgspec.Struct], name: str) -> None:  # noqa: ANN401
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{_at(name, node)}: expected `key: value` lines")
    hints = get_type_hints(kind, include_extras=True)
    required = {field.name for field in msgspec.structs.fields(kind) if field.required}
    for key_node, value_node in _pairs(node, name):
        key = key_node.value
        if key not in hints:
            raise ConfigError(f"{_at(name, key_node)}: unknown key `{key}`: {did_you_mean(key, tuple(hints))}")
        required.discard(key)
        _check(value_node, value[key], hints[key], name)
    if required:
        raise ConfigError(f"{_at(name, node)}: `{min(required)}` is missing")


def _choices(kind: Any) -> tuple[str, ...]:  # noqa: ANN401 - a type expression
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return tuple(str(member.value) for member in kind)
    origin = get_origin(kind)
    if origin is Literal:
        return tuple(str(choice) for choice in get_args(kind))
    if origin is Union or origin is types.UnionType:
        return tuple(choice for part in get_args(kind) for choice in _choices(part))
    return ()


def _child(node: yaml.Node, key: str) -> yaml.Node:
    if isinstance(node, yaml.MappingNode):
        value_node: yaml.Node
        for key_node, value_node in node.value:
            if key_node.value == key:
                return value_node
    return node


def _check_meaning(root: yaml.Node, policy: Policy, name: str, now_wall: float) -> None:
    for key_node, _ in _child(root, "rules").value if policy.rules else ():
        _check_rule(key_node.value, _at(name, key_node))
    nodes = _child(root, "overrides").value if policy.overrides else ()
    for node, override in zip(nodes, policy.overrides, strict=True):
        if override.rule:
            _check_rule(override.rule, _at(name, _child(node, "rule")))
        if not override.uuid and (not override.rule or override.do == "pin_unhealthy"):
            raise ConfigError(f"{_at(name, node)}: `uuid` is missing: this would be about every device")
        if override.until.timestamp() > now_wall + OVERRIDE_DAYS_MAX * 86400:
            raise ConfigError(
                f"{_at(name, _child(node, 'until'))}: `{override.until.isoformat()}` is more than {OVERRIDE_DAYS_MAX} "
                "days ahead: an override must end; renew it when it does"
            )


def _check_rule(rule: str, at: str) -> None:
    if rule not in RULE_BY_KEY:
        raise ConfigError(f"{at}: unknown rule `{rule}`: {did_you_mean(rule, tuple(RULE_BY_KEY))}")
