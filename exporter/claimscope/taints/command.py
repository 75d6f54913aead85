"""What do `claimscope taints` and `claimscope explain gpu` read, write and say? They ask the API server themselves.

A command never deletes what is not ours, and deletes rules one by one, each in the version that was seen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec

from claimscope.claims.cluster import Cluster
from claimscope.claims.model import DeviceKey
from claimscope.health.rules import RULE_BY_KEY
from claimscope.kube.api import ApiClient, ApiError, ApiReason, decode, discover
from claimscope.kube.objects import (
    RESOURCE_GROUP,
    DeviceTaintRule,
    Lease,
    Node,
    RawList,
    ResourceClaim,
    ResourceSlice,
)
from claimscope.taints import apply_nodes, conditions, fences
from claimscope.taints.apply import RuleWriter, Standing, api_time, standing_of
from claimscope.taints.guard import RULE_VERSIONS, RULES
from claimscope.taints.inventory import Inventory
from claimscope.taints.model import MANAGED_BY, ReportedFinding
from claimscope.taints.notebook import (
    ACKNOWLEDGE,
    BREAKER,
    IGNORE,
    LIFTED,
    SHOWN,
    Ask,
    Lifted,
    Notebook,
    Shown,
    annotation_of,
    paused_by,
)
from claimscope.taints.reports import FINDINGS_ANNOTATION, NODE_ANNOTATION, read_findings
from claimscope.yamlfile import did_you_mean

_PAGE: Final = "500"
_LIFT_TRIES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Everything that `taints list` shows."""

    rules: tuple[Standing, ...]
    paused: str | None
    shown: Shown | None  # what the controller said last; None: it has said nothing yet


async def _list(api: ApiClient, path: str, kind: type, params: Mapping[str, str] | None = None) -> list[object]:
    found: list[object] = []
    more: dict[str, str] = {}
    while True:
        page = decode(await api.get(path, {**(params or {}), "limit": _PAGE, **more}), RawList, path)
        found += (decode(item, kind, path) for item in page.items or ())
        if not page.metadata.continue_:
            return found
        more = {"continue": page.metadata.continue_}


async def _rules(api: ApiClient) -> tuple[str | None, list[DeviceTaintRule]]:
    """Rules with our label and the version they are served in; none where the API is not served."""
    try:
        version = await discover(api, RESOURCE_GROUP, RULE_VERSIONS, RULES)
    except ApiError as error:
        if error.reason is ApiReason.NOT_FOUND:
            return None, []
        raise
    path = f"/apis/{RESOURCE_GROUP}/{version}/{RULES}"
    listed = await _list(api, path, DeviceTaintRule, {"labelSelector": f"{fences.MANAGED_LABEL}={MANAGED_BY}"})
    return version, [rule for rule in listed if isinstance(rule, DeviceTaintRule)]


def _standing(rules: Iterable[DeviceTaintRule]) -> list[Standing]:
    return [standing for rule in rules if (standing := standing_of(rule)) is not None]


async def overview(api: ApiClient, notebook: Notebook) -> Overview:
    """What stands and what is held back. Raises ApiError."""
    _, rules = await _rules(api)
    paused = paused_by(await notebook.read())
    return Overview(rules=tuple(_standing(rules)), paused=paused, shown=await _shown(notebook))


async def _shown(notebook: Notebook) -> Shown | None:
    text = (await notebook.recall()).get(SHOWN)
    try:
        return msgspec.json.decode(text, type=Shown) if text else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


_Row = tuple[str, str, str, str, str, str, str, str]


def table(found: Overview) -> str:
    """The overview for people."""
    lines: list[str] = []
    if found.paused is not None:
        lines.append(f"paused by {found.paused}: nothing new is put up")
    if found.shown is not None:
        why = f" ({found.shown.why})" if found.shown.why else ""
        lines.append(f"mode: {found.shown.mode}, configured: {found.shown.configured}{why}")
        if found.shown.breaker != "closed":
            lines.append(f"breaker: {found.shown.breaker}")
        lines += (f"node {node} has {taints}" for node, taints in found.shown.nodes.items())
    rows: list[_Row] = [("DEVICE", "NODE", "UUID", "SEVERITY", "EFFECT", "SINCE", "RULE", "STATE")]
    rows += (_row(each) for each in sorted(found.rules, key=lambda each: (each.fence.node, each.fence.device)))
    for held in found.shown.held if found.shown is not None else ():
        rows.append((
            held.device.strip("/") or "-", held.node, held.uuid, held.severity, "-", "-", held.rule,
            f"held ({held.reason}): {held.text}",
        ))
    if len(rows) == 1:
        return "\n".join([*lines, "no device is tainted by claimscope"])
    if found.shown is not None and found.shown.held_more:
        lines.append(f"{found.shown.held_more} more are held back")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join([*lines, *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)])


def _row(each: Standing) -> _Row:
    fence = each.fence
    stands = "stands" if each.honoured else "stands, not confirmed by Kubernetes yet"
    state = "edited by somebody: left alone" if fence.edited else stands
    return (
        str(fence.device), fence.node, fence.uuid, fences.word_of(fence), fence.effect, _since(each), fence.value,
        state,
    )


def _since(each: Standing) -> str:
    said, made = each.fence.annotations.get(fences.SINCE, ""), each.fence.created_wall
    if said.isascii() and said.isdigit() and len(said) < 12:
        return api_time(float(said))
    return "-" if made is None else api_time(made)


# --- lifting ---


@dataclass(slots=True)
class Lifting:
    """What came of it, in lines for people."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    async def attempt(self, done: str, left: str, write: Callable[[], Awaitable[object]]) -> None:
        """One of many writes: a failure keeps none of the others."""
        try:
            await write()
        except ApiError as error:
            self.left.append(f"{left}: {error}")
        else:
            self.done.append(done)


async def lift(
    api: ApiClient, notebook: Notebook, *, names: Iterable[str] = (), all_of_ours: bool = False, author: str,
    reason: str = "", wall: float,
) -> Lifting:
    """Deletes rules of ours by name or uuid; with `all_of_ours` takes our taints and conditions from Nodes, too.

    Raises ApiError where nothing can be read; KeyError with a name that is no rule's of ours, and no uuid of one.
    """
    version, rules = await _rules(api)
    wanted = set(names)
    missing = wanted.difference(*(_names(rule) for rule in rules))
    if missing:
        raise KeyError(min(missing))
    chosen = [rule for rule in rules if all_of_ours or not wanted.isdisjoint(_names(rule))]
    result = Lifting()
    if chosen:
        lifted = Lifted(
            author=author, wall=wall, reason=reason,
            names=() if all_of_ours else tuple(rule.metadata.name for rule in chosen),
        )  # fmt: skip
        await _note(notebook, lifted, result)
    writer = RuleWriter(api, version or RULE_VERSIONS[0])
    for rule in chosen:
        name, taint = rule.metadata.name, rule.spec.taint
        about = f"{name}: {taint.key} of effect {taint.effect} on {_device(rule)}"
        await result.attempt(f"lifted {about}", f"not lifted {name}", partial(_delete, api, writer, rule))
    if all_of_ours:
        await _clear_nodes(api, result)
    return result


async def _note(notebook: Notebook, lifted: Lifted, result: Lifting) -> None:
    """Leaves word for the leader, where there is or was one."""
    try:
        if await notebook.recall():
            await notebook.write({LIFTED: msgspec.json.encode(lifted).decode()})
    except ApiError as error:
        result.done.append(f"the controller will not know who lifted them: {error}")


async def _delete(api: ApiClient, writer: RuleWriter, rule: DeviceTaintRule) -> None:
    """Deletes a rule, looking again where somebody writes it meanwhile; one that is ours no more is left."""
    for _ in range(_LIFT_TRIES - 1):
        try:
            return await writer.delete(rule.metadata.name, rule.metadata.uid, rule.metadata.resource_version)
        except ApiError as error:
            if error.reason is not ApiReason.CONFLICT:
                raise
        found = await writer.read(rule.metadata.name)
        if found is None:
            return None
        if (found.metadata.labels or {}).get(fences.MANAGED_LABEL) != MANAGED_BY:
            raise ApiError(ApiReason.CONFLICT, f"somebody took its label {fences.MANAGED_LABEL} away")
        rule = found
    return await writer.delete(rule.metadata.name, rule.metadata.uid, rule.metadata.resource_version)


def _names(rule: DeviceTaintRule) -> tuple[str, str]:
    return rule.metadata.name, (rule.metadata.annotations or {}).get(fences.UUID, "")


def _device(rule: DeviceTaintRule) -> str:
    selector = rule.spec.device_selector
    parts = () if selector is None else (selector.driver, selector.pool, selector.device)
    return "/".join(part or "*" for part in parts) or "*"


async def _clear_nodes(api: ApiClient, result: Lifting) -> None:
    nodes: list[Node] = []
    try:
        nodes += [node for node in await _list(api, "/api/v1/nodes", Node) if isinstance(node, Node)]
    except ApiError as error:
        result.left.append(f"taints and conditions of nodes: {error}")
    for node in nodes:
        meta = node.metadata
        if meta.annotations and meta.annotations.taints:
            await result.attempt(
                f"took the taints from node {meta.name}", f"taints of node {meta.name}",
                partial(apply_nodes.write, api, meta.name, meta.uid, ()),
            )  # fmt: skip
        if conditions.present_on(node):
            await result.attempt(
                f"took the conditions from node {meta.name}", f"conditions of node {meta.name}",
                partial(conditions.write, api, meta.name, (), {}, 0.0),
            )  # fmt: skip


def acknowledgement(what: str, *, rule: str, hours: float, author: str, reason: str) -> tuple[str, str]:
    """The annotation that asks the leader for it. Raises ValueError for what nothing is known of."""
    if what == BREAKER or what in RULE_BY_KEY:
        return annotation_of(ACKNOWLEDGE, what), author
    if rule and rule not in RULE_BY_KEY:
        raise ValueError(f"--rule: unknown rule `{rule}`: {did_you_mean(rule, tuple(RULE_BY_KEY))}")
    if "-" not in what:
        raise ValueError(f"`{what}` is no uuid of a GPU; as a rule: {did_you_mean(what, (*RULE_BY_KEY, BREAKER))}")
    ask = Ask(author=author, rule=rule, hours=hours, reason=reason)
    return annotation_of(IGNORE, what), msgspec.json.encode(ask).decode()


# --- explain gpu ---


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuStory:
    """Everything there is to say of one GPU."""

    uuid: str
    node: str
    devices: tuple[DeviceKey, ...]  # as which it is published
    findings: tuple[ReportedFinding, ...]
    rules: tuple[Standing, ...]
    held: tuple[str, ...]  # why a taint that is wanted does not stand, or keeps nobody away
    held_unnamed: int = 0  # taints that are held back, and of which the controller does not say which
    holders: tuple[str, ...]  # claims
    others: tuple[str, ...]  # taints that are not ours
    heard: str | None  # when the node's agent renewed its Lease last; None: there is none

    @property
    def known(self) -> bool:
        """Whether anything in the cluster speaks of such a GPU."""
        return bool(self.devices or self.findings or self.rules)


async def gpu_story(api: ApiClient, notebook: Notebook, uuid: str) -> GpuStory:
    """Reads what is known of a GPU, once. Raises ApiError."""
    cluster, inventory = Cluster(), Inventory()
    version = await discover(api, RESOURCE_GROUP, RULE_VERSIONS, "resourceslices")
    base = f"/apis/{RESOURCE_GROUP}/{version}"
    cluster.sync("resourceslices", await _list(api, f"{base}/resourceslices", ResourceSlice))
    cluster.sync("resourceclaims", await _list(api, f"{base}/resourceclaims", ResourceClaim))
    rule_version, labelled = await _rules(api)
    rules = _standing(labelled)
    if rule_version is not None:
        path = f"/apis/{RESOURCE_GROUP}/{rule_version}/{RULES}"
        cluster.sync("devicetaintrules", await _list(api, path, DeviceTaintRule))
    inventory.follow(cluster)
    reported, heard = await _reported(api, notebook.namespace)
    findings = [finding for finding in reported if finding.uuid == uuid]
    sites = sorted({
        site.device: site for node in {"", *inventory.nodes()} for site in inventory.sites(uuid, node)
    }.items())
    devices = tuple(device for device, _ in sites)
    shown = await _shown(notebook)
    nodes = [*(finding.node for finding in findings), *(site.node for _, site in sites)]
    node = next((node for node in nodes if node), "")
    return GpuStory(
        uuid=uuid, node=node, devices=devices, findings=tuple(findings), heard=heard.get(node),
        rules=tuple(each for each in rules if each.fence.uuid == uuid or each.fence.device in devices),
        held=_held(shown, uuid, devices),
        held_unnamed=0 if shown is None else shown.held_more,
        holders=tuple(
            f"{held.claim} holds {device}{' for administration' if held.admin else ''}"
            for device in devices for held in cluster.holdings(device)
        ),
        others=_others(cluster, devices, {each.fence.name for each in rules}),
    )  # fmt: skip


def _held(shown: Shown | None, uuid: str, devices: Sequence[DeviceKey]) -> tuple[str, ...]:
    names = set(map(str, devices))
    return tuple(
        f"{held.text} ({held.rule}, {held.reason})"
        for held in (shown.held if shown is not None else ())
        if held.uuid == uuid or held.device in names
    )


def _others(cluster: Cluster, devices: Sequence[DeviceKey], ours: set[str]) -> tuple[str, ...]:
    return tuple(
        f"{taint.key}={taint.value}, effect {taint.effect}, on {device}, "
        f"by {'the driver' if taint.rule is None else f'DeviceTaintRule {taint.rule}'}"
        for device in devices
        for taint in cluster.taints(device)
        if taint.rule not in ours
    )


async def _reported(api: ApiClient, namespace: str) -> tuple[list[ReportedFinding], dict[str, str]]:
    """What the agents have found, and when each of them was heard last, by node."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    found: list[ReportedFinding] = []
    heard: dict[str, str] = {}
    for lease in await _list(api, path, Lease, {"labelSelector": "app.kubernetes.io/component=agent"}):
        notes = (lease.metadata.annotations or {}) if isinstance(lease, Lease) else {}
        if isinstance(lease, Lease) and (node := notes.get(NODE_ANNOTATION)):
            found += read_findings(node, notes.get(FINDINGS_ANNOTATION)).findings
            heard[node] = max(heard.get(node, ""), lease.spec.renew_time or "")
    return found, heard


def story_words(story: GpuStory) -> str:
    """Why it is tainted, since when, on what evidence, what would clear it, and who holds it."""
    if not story.known:
        return (
            f"{story.uuid} is not known: no ResourceSlice publishes it and no agent has a finding about it; compare it "
            "with `nvidia-smi -L` on its node (a GPU of the device plugin is known while something is found)"
        )
    where = f" on node {story.node}" if story.node else ""
    published = ", ".join(map(str, story.devices)) or "published by no slice"
    lines = [f"{story.uuid}{where}: {published}"]
    for each in story.rules:
        fence = each.fence
        kept = "keeps new work away" if fences.blocks(fence.effect) else "announced, new work may still get it"
        lines.append(f"tainted {fence.key}={fence.value}, effect {fence.effect}: {kept}")
        lines.append(f"  by DeviceTaintRule {fence.name} since {_since(each)}")
        if fence.edited:
            lines.append("  somebody changed this rule: claimscope leaves it alone until an hour after it is deleted")
        if not each.honoured:
            lines.append("  Kubernetes has not confirmed it yet: the status of the rule is empty")
    if not story.rules:
        lines.append("not tainted by claimscope")
    lines += (f"not fenced: {each}" for each in story.held)
    fenced = any(fences.blocks(each.fence.effect) for each in story.rules)
    if story.findings and not story.held and not fenced and story.held_unnamed:
        lines.append(
            f"why it is not fenced is not known here: the controller names the first that it holds back, and not the "
            f"{story.held_unnamed} others; `dra_taint_held` counts all by reason"
        )
    for finding in story.findings:
        lines.append(f"finding {finding.rule} ({finding.severity.value}) since {api_time(finding.since_wall)}")
        lines += (f"  {name}: {value}" for name, value in finding.evidence.items())
        if finding.systemic:
            lines.append("  many devices have it at once: its cause lies outside of this GPU")
        if finding.clears:
            lines.append(f"  cleared by: {finding.clears}")
    if not story.findings:
        lines.append(_without_findings(story))
    lines += (f"other taint: {each}" for each in story.others)
    lines += story.holders or ("no claim holds it",)
    return "\n".join(lines)


def _without_findings(story: GpuStory) -> str:
    if story.heard is None:
        return f"its health is not known: no agent reports for {f'node {story.node}' if story.node else 'it'}"
    return f"nothing is found against it by the agent of node {story.node}, heard last at {story.heard}"
