"""What does the API server say at this moment, and how do its objects hang together?

The one mutable mirror of the cluster. `apply` and `sync` take what the watches bring; everything else reads. It
decides nothing: states, causes and counts are made from it elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from claimscope.claims.model import DeviceFacts, DeviceKey, Holding, Key, Pool, PoolKey, StandingTaint
from claimscope.claims.published import PublishedSlice, flatten
from claimscope.kube.objects import (
    DeviceClass,
    DeviceTaintRule,
    Event,
    Lease,
    Node,
    NodeSelector,
    NodeSelectorTerm,
    Pod,
    ResourceClaim,
    ResourceClaimTemplate,
    ResourceQuota,
    SelectorRequirement,
    unix_seconds,
)

_NOTHING: Mapping[str, str] = {}
TERMINAL_PHASES = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One object as it was and as it is; an object made again under the same name comes as two changes."""

    kind: str  # WatchedKind.name
    before: Any | None
    after: Any | None
    listed: bool = False  # told by a list: when it happened is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class PodClaim:
    """One claim that a pod names."""

    pod_claim: str  # the pod's own name of it
    claim: str | None  # name of the ResourceClaim; None while none has been made from the template
    template: str | None = None
    extended: bool = False  # made by the scheduler for an extended resource
    needless: bool = False  # the claim controller found that the template yields no claim


def claims_of(pod: Pod) -> tuple[PodClaim, ...]:
    """Every claim that a pod names, with the object's name where there is one."""
    made = {status.name: status.resource_claim_name for status in pod.status.resource_claim_statuses or ()}
    found = [
        PodClaim(
            pod_claim=entry.name,
            claim=entry.resource_claim_name or made.get(entry.name),
            template=entry.resource_claim_template_name,
            needless=entry.resource_claim_name is None and entry.name in made and made[entry.name] is None,
        )
        for entry in pod.spec.resource_claims or ()
    ]
    extended = pod.status.extended_resource_claim_status
    if extended is not None and extended.resource_claim_name:
        found.append(PodClaim(pod_claim="", claim=extended.resource_claim_name, extended=True))
    return tuple(found)


def _named_claims(pod: Pod) -> frozenset[str]:
    return frozenset(entry.claim for entry in claims_of(pod) if entry.claim is not None)


def is_active(pod: Pod) -> bool:
    """True while a pod still wants its claims: it has neither ended nor been told to."""
    return pod.status.phase not in TERMINAL_PHASES and pod.metadata.deletion_timestamp is None


def key_of(obj: Any) -> Key:  # noqa: ANN401 - any of the kinds
    """Namespace and name."""
    return Key(obj.metadata.namespace, obj.metadata.name)


def holdings_of(claim: ResourceClaim) -> tuple[Holding, ...]:
    """The devices that a claim is allocated."""
    allocation = claim.status.allocation
    if allocation is None:
        return ()
    key = key_of(claim)
    return tuple([
        Holding(
            claim=key,
            claim_uid=claim.metadata.uid,
            request=result.request,
            device=DeviceKey(result.driver, result.pool, result.device),
            admin=bool(result.admin_access),
            share_id=result.share_id,
            consumed=result.consumed_capacity or _NOTHING,
            tolerations=tuple(result.tolerations or ()),
        )
        for result in allocation.devices.results or ()
    ])


def rule_selects(rule: DeviceTaintRule, device: DeviceKey) -> bool:
    """Whether a rule taints a device.

    An absent selector is documented to match nothing, yet schedulers up to 1.37.0 let it match everything
    (kubernetes/kubernetes #141620); an empty one matches everything by definition. Both are taken as everything.
    """
    selector = rule.spec.device_selector
    if selector is None:
        return True
    return (
        (selector.driver is None or selector.driver == device.driver)
        and (selector.pool is None or selector.pool == device.pool)
        and (selector.device is None or selector.device == device.device)
    )


def _only_device(rule: DeviceTaintRule) -> DeviceKey | None:
    selector = rule.spec.device_selector
    if selector is None or selector.driver is None or selector.pool is None or selector.device is None:
        return None
    return DeviceKey(selector.driver, selector.pool, selector.device)


def node_matches(selector: NodeSelector, node: Node) -> bool:
    """Whether a node satisfies a node selector (core/v1 NodeSelector: terms ORed, requirements ANDed)."""
    return any(_term_matches(term, node) for term in selector.node_selector_terms or ())


def _term_matches(term: NodeSelectorTerm, node: Node) -> bool:
    if not term.match_expressions and not term.match_fields:
        return False  # an empty term selects nothing
    labels = node.metadata.labels or {}
    fields = {"metadata.name": node.metadata.name}
    return all(_requirement_holds(each, labels) for each in term.match_expressions or ()) and all(
        _requirement_holds(each, fields) for each in term.match_fields or ()
    )


def _requirement_holds(requirement: SelectorRequirement, values: Mapping[str, str]) -> bool:
    found = values.get(requirement.key)
    wanted = requirement.values or []
    match requirement.operator:
        case "In":
            return found in wanted
        case "NotIn":
            return found not in wanted
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
        case "Gt" | "Lt" if found is not None and len(wanted) == 1:
            try:
                return int(found) > int(wanted[0]) if requirement.operator == "Gt" else int(found) < int(wanted[0])
            except ValueError:
                return False
        case _:
            return False


class Cluster:
    """The mirror. Every mapping is live and must only be read; one event loop owns it."""

    def __init__(self) -> None:
        self.claims: dict[Key, ResourceClaim] = {}
        self.pods: dict[Key, Pod] = {}
        self.classes: dict[str, DeviceClass] = {}
        self.templates: dict[Key, ResourceClaimTemplate] = {}
        self.rules: dict[str, DeviceTaintRule] = {}
        self.nodes: dict[str, Node] = {}
        self.quotas: dict[Key, ResourceQuota] = {}
        self.leases: dict[Key, Lease] = {}
        self.pools: dict[PoolKey, Pool] = {}
        self.devices: dict[DeviceKey, DeviceFacts] = {}
        self.synced: set[str] = set()  # kinds whose list has been read at least once
        self.unserved: set[str] = set()  # kinds that the API server does not serve: there are none
        self._slices: dict[str, PublishedSlice] = {}
        self._slices_of_pool: dict[PoolKey, set[str]] = {}
        self._pods_of_claim: dict[Key, tuple[Key, ...]] = {}
        self._holdings: dict[DeviceKey, tuple[Holding, ...]] = {}
        self._events: dict[str, dict[tuple[str, str], Event]] = {}  # reason -> (namespace/pod, uid) -> newest
        self._narrow_rules: dict[DeviceKey, set[str]] = {}  # rules that name exactly one device
        self._wide_rules: set[str] = set()
        self.tainted: set[DeviceKey] = set()  # devices whose slice carries taints; rules are not in it
        self.node_labels_version = 0  # rises when a node comes, goes or is labelled anew: node selectors match anew
        self._dirty_pools: set[PoolKey] = set()
        # Numbers that only grow, for those who keep what they derived.
        self.revision = 0  # any news
        self.classes_revision = 0
        self.pool_revisions: dict[PoolKey, int] = {}  # of pools whose devices, holders or taints changed

    # --- taking news in ---

    def sync(self, kind: str, objects: Iterable[Any]) -> list[Change]:
        """Takes a whole list of a kind; answers what it changes."""
        self.synced.add(kind)
        incoming = {self._identity(kind, obj): obj for obj in objects}
        changes: list[Change] = []
        for identity in [identity for identity in self._known(kind) if identity not in incoming]:
            changes += self._put(kind, identity, None, listed=True)
        for identity, obj in incoming.items():
            changes += self._put(kind, identity, obj, listed=True)
        return changes

    def apply(self, kind: str, obj: Any, present: bool) -> list[Change]:  # noqa: ANN401 - of the kind's struct
        """Takes one event of a watch; answers what it changes."""
        return self._put(kind, self._identity(kind, obj), obj if present else None, listed=False, gone=obj)

    def _identity(self, kind: str, obj: Any) -> Any:  # noqa: ANN401
        if kind in ("deviceclasses", "devicetaintrules", "nodes", "resourceslices"):
            return obj.metadata.name
        return key_of(obj)

    def _known(self, kind: str) -> Iterable[Any]:
        if kind == "resourceslices":
            return list(self._slices)
        if kind.startswith("events/"):
            return ()  # a list of events holds the last hour only; what it lacks was still said
        return list(self._table(kind))

    def _table(self, kind: str) -> dict[Any, Any]:
        tables: dict[str, dict[Any, Any]] = {
            "resourceclaims": self.claims,
            "pods": self.pods,
            "deviceclasses": self.classes,
            "resourceclaimtemplates": self.templates,
            "devicetaintrules": self.rules,
            "nodes": self.nodes,
            "resourcequotas": self.quotas,
            "leases": self.leases,
        }
        return tables[kind]

    def _put(
        self, kind: str, identity: Any, obj: Any | None, *, listed: bool, gone: Any | None = None  # noqa: ANN401
    ) -> list[Change]:
        self.revision += 1
        if kind == "resourceslices":
            published = flatten(obj) if obj is not None else None
            self._put_slice(identity, published)
            return [Change(kind=kind, before=None, after=published, listed=listed)]
        if kind.startswith("events/"):
            if obj is not None:
                self._put_event(obj)
            elif gone is not None:
                self._drop_event(gone)
            return [Change(kind=kind, before=None, after=obj, listed=listed)]
        table = self._table(kind)
        before = table.get(identity)
        if before is not None and obj is not None and before.metadata.uid != obj.metadata.uid:
            return [*self._swap(kind, identity, before, None, listed), *self._swap(kind, identity, None, obj, listed)]
        if before is None:
            return [] if obj is None else self._swap(kind, identity, None, obj, listed)
        if obj is None and gone is not None:
            if before.metadata.uid != gone.metadata.uid:
                return []  # the end of an older object of this name, told late
            before = self._last_words(kind, identity, before, gone)
        return self._swap(kind, identity, before, obj, listed)

    def _last_words(self, kind: str, identity: Any, before: Any, gone: Any) -> Any:  # noqa: ANN401
        """A DELETED event carries the object's final state, which no other event may have brought."""
        if before.metadata.resource_version == gone.metadata.resource_version:
            return before
        return gone if self._swap(kind, identity, before, gone, listed=False) else before

    def _swap(self, kind: str, identity: Any, before: Any, after: Any, listed: bool) -> list[Change]:  # noqa: ANN401
        table = self._table(kind)
        if after is None:
            table.pop(identity, None)
        else:
            table[identity] = after
        if kind == "resourceclaims":
            self._index_claim(before, after)
        elif kind == "devicetaintrules":
            self._index_rule(before, after)
        elif kind == "deviceclasses":
            self.classes_revision += 1
        elif kind == "nodes":
            if before is None or after is None or before.metadata.labels != after.metadata.labels:
                self.node_labels_version += 1
        elif kind == "pods":
            self._index_pod(identity, before, after)
            if after is None:
                for events in self._events.values():
                    events.pop((str(identity), before.metadata.uid), None)
        return [Change(kind=kind, before=before, after=after, listed=listed)]

    def _index_claim(self, before: ResourceClaim | None, after: ResourceClaim | None) -> None:
        old = holdings_of(before) if before is not None else ()
        new = holdings_of(after) if after is not None else ()
        if old == new:
            return
        self._touch_pools(PoolKey(each.device.driver, each.device.pool) for each in (*old, *new))
        for holding in old:
            left = tuple(each for each in self._holdings.get(holding.device, ()) if each != holding)
            if left:
                self._holdings[holding.device] = left
            else:
                self._holdings.pop(holding.device, None)
        for holding in new:
            self._holdings[holding.device] = (*self._holdings.get(holding.device, ()), holding)

    def _index_rule(self, before: DeviceTaintRule | None, after: DeviceTaintRule | None) -> None:
        for rule, add in ((before, False), (after, True)):
            if rule is None:
                continue
            self._touch_pools(self.pools_of_rule(rule))
            device = _only_device(rule)
            names = self._wide_rules if device is None else self._narrow_rules.setdefault(device, set())
            if add:
                names.add(rule.metadata.name)
            else:
                names.discard(rule.metadata.name)
                if device is not None and not names:
                    del self._narrow_rules[device]

    def _index_pod(self, key: Key, before: Pod | None, after: Pod | None) -> None:
        old = _named_claims(before) if before is not None else frozenset()
        new = _named_claims(after) if after is not None else frozenset()
        for name in new - old:
            claim = Key(key.namespace, name)
            self._pods_of_claim[claim] = (*self._pods_of_claim.get(claim, ()), key)
        for name in old - new:
            claim = Key(key.namespace, name)
            left = tuple(each for each in self._pods_of_claim[claim] if each != key)
            if left:
                self._pods_of_claim[claim] = left
            else:
                del self._pods_of_claim[claim]

    def _put_event(self, event: Event) -> None:
        about = event.involved_object
        if about.kind != "Pod":
            return
        key = Key(about.namespace or event.metadata.namespace, about.name)
        by_pod = self._events.setdefault(event.reason, {})
        known = by_pod.get((str(key), about.uid))
        if known is None or event_wall(event) >= event_wall(known):
            by_pod[(str(key), about.uid)] = event

    def _drop_event(self, event: Event) -> None:
        """Events expire after an hour; what was said about a pod that still exists stands."""
        about = event.involved_object
        key = Key(about.namespace or event.metadata.namespace, about.name)
        if key not in self.pods:
            self._events.get(event.reason, {}).pop((str(key), about.uid), None)

    def _put_slice(self, name: str, published: PublishedSlice | None) -> None:
        before = self._slices.pop(name, None)
        touched: set[PoolKey] = set()
        if before is not None:
            self._slices_of_pool[before.pool].discard(name)
            touched.add(before.pool)
        if published is not None:
            self._slices[name] = published
            self._slices_of_pool.setdefault(published.pool, set()).add(name)
            touched.add(published.pool)
        for pool in touched:
            self._derive(pool)

    def _derive(self, key: PoolKey) -> None:
        """The pool's newest generation, from its slices."""
        self._touch_pools((key,))
        old = self.pools.pop(key, None)
        for device in old.devices if old is not None else ():
            self.devices.pop(device.key, None)
            self.tainted.discard(device.key)
        names = self._slices_of_pool.get(key)
        if not names:
            self._slices_of_pool.pop(key, None)
            return
        slices = [self._slices[name] for name in sorted(names)]
        generation = max(each.generation for each in slices)
        newest = [each for each in slices if each.generation == generation]
        devices: dict[str, DeviceFacts] = {}
        problem = None
        for each in newest:
            for device in each.devices:
                if device.key.device in devices:
                    problem = f"two slices of pool {key.pool} publish a device named {device.key.device}"
                devices[device.key.device] = device
        pool = Pool(
            key=key,
            generation=generation,
            slices_seen=len(newest),
            slices_expected=max(each.expected for each in newest),
            devices=tuple(devices.values()),
            counters={name: counters for each in newest for name, counters in each.counters.items()},
            problem=problem,
        )
        self.pools[key] = pool
        for device in pool.devices:
            self.devices[device.key] = device
            if device.taints:
                self.tainted.add(device.key)

    def _touch_pools(self, keys: Iterable[PoolKey]) -> None:
        for key in keys:
            self._dirty_pools.add(key)
            self.pool_revisions[key] = self.revision

    # --- reading ---

    def pods_of(self, claim: Key) -> list[Pod]:
        """The pods that name a claim, oldest first."""
        found = [self.pods[key] for key in self._pods_of_claim.get(claim, ()) if key in self.pods]
        found.sort(key=lambda pod: (pod.metadata.creation_timestamp or "", pod.metadata.name))
        return found

    def holdings(self, device: DeviceKey) -> tuple[Holding, ...]:
        """Which claims are allocated a device, observers (admin) among them."""
        return self._holdings.get(device, ())

    def held_devices(self) -> Mapping[DeviceKey, tuple[Holding, ...]]:
        """Every device that some claim is allocated; also devices that no slice publishes any more."""
        return self._holdings

    def event(self, pod: Pod, reason: str) -> Event | None:
        """The newest event of a reason on a pod."""
        return self._events.get(reason, {}).get((str(key_of(pod)), pod.metadata.uid))

    def taints(self, device: DeviceKey) -> tuple[StandingTaint, ...]:
        """The taints on a device: the slice's and every rule's. The slice never shows those of rules."""
        facts = self.devices.get(device)
        found = [
            StandingTaint(
                device=device, key=taint.key, value=taint.value, effect=_effect(taint.effect),
                since_wall=unix_seconds(taint.time_added),
            )
            for taint in (facts.taints if facts is not None else ())
        ]
        found += [
            StandingTaint(
                device=device, key=rule.spec.taint.key, value=rule.spec.taint.value,
                effect=_effect(rule.spec.taint.effect), rule=rule.metadata.name,
                since_wall=unix_seconds(rule.spec.taint.time_added),
            )
            for rule in self.rules_on(device)
        ]
        return tuple(found)

    def rules_on(self, device: DeviceKey) -> list[DeviceTaintRule]:
        """The rules that select a device, by name."""
        names = self._narrow_rules.get(device, set()) | self._wide_rules
        return [rule for name in sorted(names) if rule_selects(rule := self.rules[name], device)]

    def pools_of_rule(self, rule: DeviceTaintRule) -> list[PoolKey]:
        """The pools in which a rule may select devices."""
        selector = rule.spec.device_selector
        if selector is None:
            return list(self.pools)
        if selector.driver is not None and selector.pool is not None:
            key = PoolKey(selector.driver, selector.pool)
            return [key] if key in self.pools else []
        return [
            key
            for key in self.pools
            if selector.driver in (None, key.driver) and selector.pool in (None, key.pool)
        ]

    def take_dirty_pools(self) -> set[PoolKey]:
        """The pools whose devices, holders or taints changed since the last call; there is one caller."""
        dirty, self._dirty_pools = self._dirty_pools, set()
        return dirty

    def usable_on(self, device: DeviceFacts, node: str) -> bool:
        """Whether a pod on `node` could use a device."""
        if device.node is not None:
            return device.node == node
        if device.all_nodes:
            return True
        found = self.nodes.get(node)
        return device.node_selector is not None and found is not None and node_matches(device.node_selector, found)

    def counts(self) -> dict[str, int]:
        """Objects known now, by kind; of events those that say something about a pod."""
        tables = (
            "resourceclaims", "pods", "deviceclasses", "resourceclaimtemplates", "devicetaintrules", "nodes",
            "resourcequotas", "leases",
        )
        return {
            **{kind: len(self._table(kind)) for kind in tables},
            "resourceslices": len(self._slices),
            **{f"events/{reason}": len(events) for reason, events in self._events.items()},
        }

    def iterate_pods(self) -> Iterator[tuple[Pod, PodClaim]]:
        """Every claim entry of every pod."""
        for pod in self.pods.values():
            for entry in claims_of(pod):
                yield pod, entry


def _effect(effect: str) -> str:
    return effect if effect in ("NoSchedule", "NoExecute") else "None"


def event_wall(event: Event) -> float:
    """When an event was last seen, in Unix seconds; 0 where it does not say."""
    stamps = (
        event.series.last_observed_time if event.series is not None else None,
        event.last_timestamp,
        event.event_time,
        event.metadata.creation_timestamp,
    )
    return max((seconds for stamp in stamps if (seconds := unix_seconds(stamp)) is not None), default=0.0)
