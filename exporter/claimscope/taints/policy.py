"""What may be fenced, how hard, how much of it and how fast?

One YAML file; what it leaves out has the defaults below. It is checked when it is read, with line and column.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterable
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from claimscope.health.model import Severity
from claimscope.health.rules import RULE_BY_KEY
from claimscope.taints.model import Mode
from claimscope.yamlfile import ConfigError, YamlMapping, did_you_mean, read_mapping

OVERRIDE_DAYS_MAX: Final = 30
_RANK: Final = {mode: rank for rank, mode in enumerate(Mode)}

# What the driver or the hardware itself says. The rest is inferred from measurements, and a node's budget bounds it.
VERDICT_RULES: Final = frozenset({
    "recovery_action", "recovery_action_reboot", "reset_failed", "gpu_lost", "gpu_missing", "reset_required",
    "xid_lost", "xid_fatal", "xid_needs_reboot", "xid_needs_repair", "xid_repeat_fatal", "driver_event_fatal",
    "sram_ecc_threshold", "row_remap_failure", "retired_pages_many",
})  # fmt: skip

# Rules that may delete pods: nothing runs on such a device any more, or nothing will until the machine reboots.
EVICTING_RULES: Final = ("gpu_lost", "gpu_missing", "xid_lost", "recovery_action_reboot")

# What a driver that is being exchanged, or was just loaded, looks like: of it nothing is put up meanwhile.
UNSETTLED_RULES: Final = frozenset({
    "gpu_missing", "driver_call_hangs", "fabric_not_ready", "fabric_unhealthy", "fabric_degraded",
})  # fmt: skip

# A verdict on the machine and not on one GPU of it: a taint of the Node keeps work from all of them. Rules name one
# device each, never a pool, so there each GPU that wants the reboot has its own.
NODE_WIDE_RULES: Final = frozenset({"recovery_action_reboot"})


class NodeTaints(enum.Enum):
    """Whether Nodes are tainted for GPUs that cannot be fenced one by one: no API for it, or a device plugin."""

    NONE = "none"
    PREFER = "prefer"  # PreferNoSchedule: other nodes go first
    ENFORCE = "enforce"  # NoSchedule for any lost GPU, and from `node_taint_share` of unhealthy ones


Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0, le=30 * 86400)]
Moment = Annotated[datetime.datetime, Meta(tz=True)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class GroupPolicy(_Part, frozen=True):
    """Of one group of nodes, by the value of the label that `node_group_label` names."""

    mode: Annotated[Mode | None, Meta(description="How far rules go on these nodes. Unset: as the file says.")] = None


class RulePolicy(_Part, frozen=True):
    """Of one health rule, by its name in docs/health.md."""

    mode: Annotated[
        Mode | None, Meta(description="How far the rule goes; of two that are set, rule and group, the milder one.")
    ] = None
    no_execute: Annotated[
        bool,
        Meta(description="Second step: once its fence has stood for `no_execute.after_seconds`, the effect becomes "
             "NoExecute, and Kubernetes deletes the pods on the device. Only for "
             f"{', '.join(f'`{rule}`' for rule in EVICTING_RULES)}."),
    ] = False


class Budgets(_Part, frozen=True):
    """How many GPUs may be kept from work at once, by whomever. Each allows one at least."""

    node_share: Annotated[
        Share,
        Meta(description="Of a node's GPUs, for rules that infer. What the driver itself says is bounded by group and "
             "fleet alone."),
    ] = 0.5
    group_share: Annotated[Share, Meta(description="Of the GPUs of a group of nodes.")] = 0.2
    fleet_share: Annotated[Share, Meta(description="Of all GPUs.")] = 0.1
    dedicating_taints: Annotated[
        tuple[str, ...],
        Meta(description="Keys of Node taints that only keep other work away from GPUs. Any other NoSchedule or "
             "NoExecute taint of a Node counts its GPUs as kept from work."),
    ] = ("nvidia.com/gpu", "dedicated", "sku")


class Rate(_Part, frozen=True):
    """How many GPUs may be newly fenced within a time."""

    least: Annotated[Count, Meta(description="So many always.")] = 3
    share: Annotated[Share, Meta(description="This share of all GPUs, where it is more.")] = 0.02
    seconds: Annotated[Seconds, Meta(description="The time.")] = 600.0


class Systemic(_Part, frozen=True):
    """When one rule on many nodes is taken for one cause outside of the GPUs: it fences no more until acknowledged."""

    nodes: Annotated[int, Meta(ge=1, description="New on so many nodes within `seconds`.")] = 5
    share: Annotated[Share, Meta(description="Or on this share of the nodes, where that is fewer.")] = 0.05
    least_nodes: Annotated[int, Meta(ge=1, description="But on no fewer: 5 % of ten nodes say nothing.")] = 3
    seconds: Annotated[Seconds, Meta(description="The time.")] = 600.0


class BreakerPolicy(_Part, frozen=True):
    """When nothing is fenced any more: GPUs to be fenced, or just fenced, within the rate's time."""

    share: Annotated[Share, Meta(description="More than this share of all GPUs opens it.")] = 0.05
    least: Annotated[Count, Meta(description="But never so many or fewer: the GPUs of one node.")] = 8
    half_open_seconds: Annotated[
        Seconds, Meta(description="After so long it lets a quarter of the rate through, to see.")
    ] = 1800.0


class NoExecutePolicy(_Part, frozen=True):
    """The second step of rules with `no_execute`. Pods are deleted without regard to disruption budgets."""

    after_seconds: Annotated[Seconds, Meta(description="How long NoSchedule stands first.")] = 300.0
    pods_max: Annotated[Count, Meta(description="Pods of one device; where there are more, nothing is deleted.")] = 1


class MaintenancePolicy(_Part, frozen=True):
    """How many nodes may be under maintenance at once, and what must hold before one is given back."""

    nodes_per_group: Annotated[int, Meta(ge=1, description="Nodes of one group at once.")] = 1
    fleet_share: Annotated[Share, Meta(description="Of the nodes with GPUs; one at least.")] = 0.05
    quiet_seconds: Annotated[
        Seconds, Meta(description="For so long nothing may be found on a node before it is given back.")
    ] = 600.0


class Override(_Part, frozen=True):
    """What a human decides on, for a time."""

    do: Annotated[
        Literal["ignore", "pin_unhealthy"],
        Meta(description="`ignore`: no fence for the finding. `pin_unhealthy`: a fence without one; it blocks in every "
             "mode of the file."),
    ]
    until: Annotated[Moment, Meta(description=f"Its end, with a time zone; at most {OVERRIDE_DAYS_MAX} days ahead.")]
    author: Annotated[str, Meta(min_length=1, description="Who decided so.")]
    uuid: Annotated[str, Meta(description="The GPU or MIG device. Empty: every one, for `ignore` with a rule.")] = ""
    rule: Annotated[str, Meta(description="The health rule. Empty: every one.")] = ""
    reason: Annotated[str, Meta(description="For others to read.")] = ""


class Pause(_Part, frozen=True):
    """No new fences, here or everywhere; lifting goes on."""

    author: Annotated[str, Meta(min_length=1, description="Who decided so.")]
    node: Annotated[str, Meta(description="Only this node.")] = ""
    group: Annotated[str, Meta(description="Only this group. Without node and group: everywhere.")] = ""
    until: Annotated[Moment | None, Meta(description="Its end. Unset: until it is taken out.")] = None
    reason: Annotated[str, Meta(description="For others to read.")] = ""


class Policy(_Part, frozen=True):
    """The file."""

    mode: Annotated[
        Mode, Meta(description="How far fencing goes where neither rule nor group says; else `--taint-mode`.")
    ] = Mode.ANNOUNCE
    groups: Annotated[dict[str, GroupPolicy], Meta(description="By the value of `node_group_label`.")] = {}
    rules: Annotated[dict[str, RulePolicy], Meta(description="By the name of the health rule.")] = {}
    node_group_label: Annotated[
        str, Meta(description="Label of Nodes whose value is their group.")
    ] = "nvidia.com/gpu.product"
    budgets: Budgets = Budgets()
    rate: Rate = Rate()
    cap: Annotated[Count, Meta(description="DeviceTaintRules of claimscope that may stand, of any effect.")] = 2000
    systemic: Systemic = Systemic()
    breaker: BreakerPolicy = BreakerPolicy()
    no_execute: NoExecutePolicy = NoExecutePolicy()
    maintenance: MaintenancePolicy = MaintenancePolicy()
    node_taints: Annotated[
        NodeTaints,
        Meta(description="Whether Nodes are tainted for GPUs that cannot be fenced one by one, where the mode is "
             "`enforce`: `prefer` by PreferNoSchedule; `enforce` by NoSchedule for any lost GPU, and from "
             "`node_taint_share` of unhealthy ones."),
    ] = NodeTaints.NONE
    node_taint_share: Annotated[
        Share, Meta(description="Share of a node's GPUs that must be unhealthy to keep work off the node.")
    ] = 0.5
    alpha_api: Annotated[
        bool, Meta(description="Write DeviceTaintRules as v1alpha3, where Kubernetes 1.35 serves them so alone.")
    ] = False
    stale_seconds: Annotated[
        float,
        Meta(ge=90, le=86400, description="An agent that is silent for longer leaves its node unmonitored. Agents are "
             "heard of each minute."),
    ] = 120.0
    stale_share: Annotated[
        Share, Meta(description="While more of the agents than this are silent, nothing new is kept from work.")
    ] = 0.2
    deleted_ignore_seconds: Annotated[
        Seconds, Meta(description="How long a fence stays away that somebody else deleted.")
    ] = 3600.0
    overrides: Annotated[tuple[Override, ...], Meta(description="What humans decided, each for a time.")] = ()
    pause: Annotated[tuple[Pause, ...], Meta(description="Where nothing new is put up.")] = ()

    def mode_of(self, group: str, rule: str) -> Mode:
        """How far a rule goes in a group: what group and rule say goes before the default, the milder of both first.

        A node without the label may be of any group, so that it is treated as the mildest of them. Rules that nothing
        is known of are announced at most: an agent may say whatever it likes. "" is no rule, as for maintenance.
        """
        known = Mode.ENFORCE if not rule or rule in RULE_BY_KEY else Mode.ANNOUNCE
        if not group and self.groups:
            return milder((known, *(self._mode_of(each, rule) for each in ("", *self.groups))))
        return milder((known, self._mode_of(group, rule)))

    def _mode_of(self, group: str, rule: str) -> Mode:
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


def read_policy(text: bytes | str, name: str, now_wall: float, mode: Mode = Mode.ANNOUNCE) -> Policy:
    """The policy of a YAML file; `mode` is that of a file that names none.

    Raises ConfigError with file, line, column and what to write instead.
    """
    found = read_mapping(text, name)
    if found is None:
        return Policy(mode=mode)
    policy = found.convert(Policy)
    _check_meaning(found, policy, now_wall)
    return policy if "mode" in found.values else msgspec.structs.replace(policy, mode=mode)


def _check_meaning(found: YamlMapping, policy: Policy, now_wall: float) -> None:
    for key_node, _ in found.pairs(found.node("rules")) if policy.rules else ():
        _check_rule(key_node.value, found.at(key_node))
        if policy.evicts(key_node.value) and key_node.value not in EVICTING_RULES:
            raise ConfigError(
                f"{found.at(found.node('rules', key_node.value, 'no_execute'))}: `{key_node.value}` may not delete "
                f"pods: `no_execute` is for {', '.join(f'`{rule}`' for rule in EVICTING_RULES)}; remove it"
            )
    for place, override in enumerate(policy.overrides):
        if override.rule:
            _check_rule(override.rule, found.at(found.node("overrides", place, "rule")))
        if not override.uuid and (not override.rule or override.do == "pin_unhealthy"):
            at = found.at(found.node("overrides", place))
            raise ConfigError(f"{at}: `uuid` is missing: this would be about every device")
        if override.until.timestamp() > now_wall + OVERRIDE_DAYS_MAX * 86400:
            at = found.at(found.node("overrides", place, "until"))
            raise ConfigError(
                f"{at}: `{override.until.isoformat()}` is more than {OVERRIDE_DAYS_MAX} days ahead: an override must "
                "end; renew it when it does"
            )


def _check_rule(rule: str, at: str) -> None:
    if rule not in RULE_BY_KEY:
        raise ConfigError(f"{at}: unknown rule `{rule}`: {did_you_mean(rule, tuple(RULE_BY_KEY))}")
