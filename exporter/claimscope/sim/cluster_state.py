"""Which objects does a simulated cluster have at time t? A function of its nodes' worlds, its stories and the time.

NVIDIA's nodes are Worlds: their pods and claims, and a life before and after what the kubelet shows of them. Other
vendors' nodes hold the stories: pods that wait for every cause there is. Nothing depends on chance or on the clock;
the same nodes, origin and time give the same objects.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from claimscope.claims.cluster import Cluster
from claimscope.claims.fitting import Matching
from claimscope.claims.model import PendingReason
from claimscope.kube.objects import DeviceClass, DeviceTaintRule, Node, ResourceSlice
from claimscope.sim import stories
from claimscope.sim.fleet import JOB_NAMESPACE
from claimscope.sim.moment import DRIVER, SimClaim, SimPod
from claimscope.sim.objects import (
    ClaimScript,
    EventScript,
    Object,
    PodScript,
    claim_object,
    class_object,
    event_object,
    metadata,
    node_object,
    owner,
    pod_object,
    request,
    slice_object,
    stamp,
)
from claimscope.sim.scenario import PodPlan
from claimscope.sim.scheduler import Scheduler
from claimscope.sim.stories import HOUR, Story
from claimscope.sim.world import World

ObjectKey = tuple[str, str, str]  # plural, namespace, name

NIGHTLY_PERIOD_SECONDS: Final = 60.0
NIGHTLY_SECONDS: Final = 25.0
_HIGH_MEMORY_MEBIBYTES: Final = 70 * 1024
# Allocated so long before its container holds the devices; more than the API server lags, so that whoever hears of
# the container finds the allocation.
_BEFORE_SECONDS: Final = 0.9
_AFTER_SECONDS: Final = 0.2  # released so long after
# What stands behind a plan's pods, by the first words of its name: labels, kind and API version of the owner.
_OWNERS: Final[tuple[tuple[str, dict[str, str], str, str], ...]] = (
    ("train-llm", {"batch.kubernetes.io/job-name": "{name}"}, "Job", "batch/v1"),
    ("finetune", {"ray.io/cluster": "{plan}", "ray.io/node-type": "worker", "ray.io/originated-from-crd": "RayJob",
                  "ray.io/originated-from-cr-name": "{plan}"}, "RayCluster", "ray.io/v1"),
    ("unit-tests", {"batch.kubernetes.io/job-name": "{name}", "kueue.x-k8s.io/queue-name": "ci"}, "Job", "batch/v1"),
    ("job-", {"batch.kubernetes.io/job-name": "{name}", "kueue.x-k8s.io/queue-name": "batch"}, "Job", "batch/v1"),
    ("chat", {"app": "chat", "pod-template-hash": "7c9f8d6b5"}, "ReplicaSet", "apps/v1"),
    ("small-model", {"serving.kserve.io/inferenceservice": "small-model"}, "ReplicaSet", "apps/v1"),
    ("forgotten-notebook", {"statefulset.kubernetes.io/pod-name": "{name}"}, "StatefulSet", "apps/v1"),
    ("gpu-observer", {"app": "gpu-observer"}, "DaemonSet", "apps/v1"),
    ("render-farm", {"app": "render-farm", "pod-template-hash": "59d8f7c4d"}, "ReplicaSet", "apps/v1"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One pod of a plan, and when its container holds the devices."""

    plan: PodPlan
    number: int | None  # None: the plan's only pod
    start: float
    end: float
    room: float  # seconds in which its devices are free before the start and after the end


class ClusterState:
    """The cluster. `origin` is the Unix time of t = 0."""

    def __init__(self, worlds: Sequence[World], matching: Matching, *, origin: float) -> None:
        names = [world.node_name for world in worlds]
        if len(set(names)) != len(names):
            raise ValueError(f"two simulated nodes have one name: {', '.join(sorted(names))}")
        self._worlds = tuple(worlds)
        self._origin = origin
        self._lives: dict[tuple[int, int, int | None], PodScript] = {}
        self.expected: dict[tuple[str, str], PendingReason] = {}  # what must be said of (namespace, pod)
        self._fixed = {_key(plural, obj): obj for plural, obj in self._standing()}
        self._pods: tuple[PodScript, ...] = ()
        self._claims: tuple[ClaimScript, ...] = (stories.unreferenced(),)
        self._nightly: ClaimScript | None = None
        self._play(matching)

    def objects(self, at: float) -> dict[ObjectKey, Object]:
        """Every object at `at` seconds, by plural, namespace and name."""
        found = dict(self._fixed)
        for world in self._worlds:
            for published in world.slices(t_seconds=at):
                found[_key("resourceslices", published)] = _dated(published, self._origin - HOUR)
        for rule in self._passing_rule(at):
            found[_key("devicetaintrules", rule)] = rule
        pods = [*self._pods, *self._world_pods(at), *self._nightly_pod(at)]
        claims = {(claim.namespace, claim.name): claim for claim in self._claims}
        users: dict[tuple[str, str], list[PodScript]] = {}
        for pod in pods:
            if not pod.created <= at < pod.gone:
                continue
            found["pods", pod.namespace, pod.name] = pod_object(pod, at, self._origin)
            for event in pod.events:
                if pod.created + event.after <= at:
                    told = event_object(pod, event, self._origin)
                    found[_key("events", told)] = told
        for pod in pods:
            for claim in pod.claims:
                claims[(claim.namespace, claim.name)] = claim
                users.setdefault((claim.namespace, claim.name), []).append(pod)
        for key, claim in claims.items():
            if claim.created <= at < claim.gone:
                found["resourceclaims", *key] = claim_object(claim, users.get(key, ()), at, self._origin)
        return found

    # ---- what stands ----

    def _standing(self) -> Iterator[tuple[str, Object]]:
        """Objects that never change."""
        origin = self._origin
        for world in self._worlds:
            yield "nodes", self._gpu_node(world)
        for name in dict.fromkeys(pool.node for pool in stories.POOLS):
            yield "nodes", node_object(name, origin=origin, labels={"topology.kubernetes.io/zone": "b"}, devices={})
        for pool in stories.POOLS:
            devices = slice_object(
                pool.driver, pool.node, pool.devices, origin=origin, slices=pool.slices
            )
            yield "resourceslices", devices
            if pool.counters:
                yield "resourceslices", slice_object(
                    pool.driver, pool.node, (), origin=origin, slices=pool.slices, part=1, counters=pool.counters
                )
        for name, expression, extended in stories.CLASSES:
            yield "deviceclasses", class_object(name, expression, origin=origin, extended=extended)
        for rule in stories.RULES:
            yield "devicetaintrules", self._rule(rule, -2 * HOUR)
        namespace, resource, hard, used = stories.QUOTA
        yield "resourcequotas", {
            "metadata": metadata("ResourceQuota", "gpu-quota", namespace, created=origin - 48 * HOUR),
            "spec": {"hard": {resource: str(hard)}},
            "status": {"hard": {resource: str(hard)}, "used": {resource: str(used)}},
        }
        yield from self._templates()
        for namespace in sorted(self._namespaces()):
            labels = {"kubernetes.io/metadata.name": namespace}
            if namespace in stories.ADMIN_NAMESPACES:
                labels["resource.kubernetes.io/admin-access"] = "true"
            yield "namespaces", {
                "metadata": metadata("Namespace", namespace, created=origin - 30 * 24 * HOUR, labels=labels),
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
            }

    def _rule(self, rule: stories.Rule, since: float) -> Object:
        name, selector, key, value, effect = rule
        when = self._origin + since
        return {
            "metadata": metadata("DeviceTaintRule", name, created=when),
            "spec": {
                "deviceSelector": dict(selector),
                "taint": {"key": key, "value": value, "effect": effect, "timeAdded": stamp(when)},
            },
            "status": {"conditions": []},
        }

    def _passing_rule(self, at: float) -> Iterator[Object]:
        began = math.floor(at / stories.PASSING_RULE_PERIOD_SECONDS) * stories.PASSING_RULE_PERIOD_SECONDS
        since, until = (began + moment for moment in stories.PASSING_RULE_SECONDS)
        if since <= at < until:
            yield self._rule(stories.PASSING_RULE, since)

    def _gpu_node(self, world: World) -> Object:
        """An NVIDIA node; the device plugin advertises what plans hold through it."""
        counts: dict[str, int] = {}
        for plan in world.scenario.pods or ():
            for resource, held in plan.plugin.items():
                counts[resource] = counts.get(resource, 0) + len(held)
        labels = {
            "nvidia.com/gpu.product": world.profile.model.replace(" ", "-"), "topology.kubernetes.io/zone": "a"
        }
        amounts = {name: str(count) for name, count in counts.items()}
        return node_object(world.node_name, origin=self._origin, labels=labels, devices=amounts)

    def _templates(self) -> Iterator[tuple[str, Object]]:
        found = {(namespace, "amd-gpu"): (request(stories.AMD),) for namespace in ("team-a", "limited")}
        for world in self._worlds:
            for plan in world.scenario.pods or ():
                for claim in plan.claims:
                    mig = claim.devices[0].startswith("mig:")
                    found[plan.namespace, claim.name] = (
                        _request(world, len(claim.devices), admin=claim.admin_access, mig=mig),
                    )
        for (namespace, name), requests in found.items():
            yield "resourceclaimtemplates", {
                "metadata": metadata("ResourceClaimTemplate", name, namespace, created=self._origin - 48 * HOUR),
                "spec": {"spec": {"devices": {"requests": list(requests)}}},
            }

    def _namespaces(self) -> set[str]:
        told = [*stories.holders(), *stories.waiters(), *stories.left_over()]
        planned = {plan.namespace for world in self._worlds for plan in world.scenario.pods or ()}
        return {story.pod.namespace for story in told} | planned | {"claimscope", "kube-system", JOB_NAMESPACE}

    # ---- stories ----

    def _play(self, matching: Matching) -> None:
        """Lets the scheduler decide about every story, in order."""
        mirror = Cluster()
        for (plural, _, _), obj in self._fixed.items():
            kind = {
                "nodes": Node, "resourceslices": ResourceSlice, "deviceclasses": DeviceClass,
                "devicetaintrules": DeviceTaintRule,
            }.get(plural)
            if kind is not None:
                mirror.apply(plural, msgspec.convert(obj, kind), present=True)
        for world in self._worlds:
            for published in world.slices():
                mirror.apply("resourceslices", msgspec.convert(published, ResourceSlice), present=True)
        scheduler = Scheduler(mirror, matching)
        total = len(mirror.nodes)
        pods = [self._played(story, scheduler, total) for story in (*stories.holders(), *stories.left_over())]
        pods += [self._played(story, scheduler, total) for story in stories.waiters()]
        leaked, nightly = (next(pod for pod in pods if pod.name == name) for name in ("leaked", "nightly"))
        shared = next(pod for pod in pods if pod.name == "prioritized").claims
        kept = [pod for pod in pods if pod.name not in ("leaked", "nightly")]
        self._pods = (*kept, *self._sharers(shared, total))
        self._claims = (*self._claims, *leaked.claims)
        self._nightly = nightly.claims[0]

    def _played(self, story: Story, scheduler: Scheduler, total: int) -> PodScript:
        pod = story.pod
        if story.reason is not None:
            self.expected[pod.namespace, pod.name] = story.reason
        if not story.schedule:
            if pod.refusal is None:
                return pod
            reason, message = pod.refusal
            return dataclasses.replace(pod, refusal=(reason, message.replace("{nodes}", str(total))))
        decision = scheduler.decide(pod)
        if decision.node is None:
            if story.reason is None or decision.refusal is None:
                raise ValueError(f"story {pod.namespace}/{pod.name} was to be placed: {decision.refusal}")
            failed = EventScript(
                reason="FailedScheduling", message=decision.refusal[1], component="default-scheduler"
            )
            return dataclasses.replace(pod, refusal=decision.refusal, events=(*pod.events, failed))
        claims = tuple(dataclasses.replace(claim, allocated=pod.created + 1.0) for claim in decision.claims)
        placed = dataclasses.replace(pod, claims=claims, node=decision.node)
        if story.reason is PendingReason.BINDING_CONDITIONS:
            return placed
        placed = dataclasses.replace(placed, bound=pod.created + 1.2)
        if story.reason is PendingReason.PREPARE_FAILED:
            return placed
        placed = dataclasses.replace(placed, prepared=pod.created + 3.0)
        return dataclasses.replace(placed, started=pod.created + 5.0) if story.runs else placed

    def _sharers(self, claims: tuple[ClaimScript, ...], total: int) -> Iterator[PodScript]:
        """Pods that name a claim that another pod has: one gets its turn, one cannot go where the devices are."""
        first = PodScript(
            namespace="team-a", name="prioritized-second", claims=claims, node=claims[0].node, created=-2 * HOUR,
            bound=-2 * HOUR + 1, prepared=-2 * HOUR + 2, started=-2 * HOUR + 4,
        )
        yield first
        text = (
            f"0/{total} nodes are available: 1 resourceclaim not available on the node, {total - 1} node(s) didn't "
            f"match Pod's node affinity/selector. still not schedulable, preemption: 0/{total} nodes are available: "
            f"{total} Preemption is not helpful for scheduling."
        )
        self.expected["team-a", "allocated-elsewhere"] = PendingReason.ALLOCATED_ELSEWHERE
        yield PodScript(
            namespace="team-a", name="allocated-elsewhere", created=-HOUR, refusal=("Unschedulable", text),
            claims=claims, node_selector={"kubernetes.io/hostname": "amd-node-1"}, never_reserved=True,
        )

    def _nightly_pod(self, at: float) -> Iterator[PodScript]:
        """A named claim that stays when its pod has ended: released, until the next one comes."""
        if self._nightly is None:
            return
        number = math.floor(at / NIGHTLY_PERIOD_SECONDS)
        start = number * NIGHTLY_PERIOD_SECONDS + 5.0
        end = start + NIGHTLY_SECONDS
        claim = dataclasses.replace(self._nightly, allocated=start + 1.0, released=end + 0.5)
        job = owner("Job", f"nightly-{number}", claim.namespace, api_version="batch/v1")
        yield PodScript(
            namespace=claim.namespace, name=f"nightly-{number}", claims=(claim,), node=claim.node, owners=(job,),
            labels={"batch.kubernetes.io/job-name": f"nightly-{number}"}, created=start, bound=start + 1.2,
            prepared=start + 2.0, started=start + 2.5, finished=end, gone=end + 10.0,
        )

    # ---- worlds ----

    def _world_pods(self, at: float) -> Iterator[PodScript]:
        kept: dict[tuple[int, int, int | None], PodScript] = {}
        for node, world in enumerate(self._worlds):
            for place, plan in enumerate(world.scenario.pods or ()):
                for run in _runs(plan, at):
                    key = (node, place, run.number)
                    life = self._lives.get(key) or self._life(world, run, place)
                    if life is not None:
                        kept[key] = life
                        yield life
        self._lives = kept

    def _life(self, world: World, run: _Run, place: int) -> PodScript | None:
        """A pod's life around the time in which the kubelet shows it."""
        name = run.plan.name if run.number is None else f"{run.plan.name}-{run.number}"
        pod = next((pod for pod in world.pods(run.start + 0.05) if pod.name == name), None)
        if pod is None:
            return None
        always = run.start <= 0.0
        created = -(place + 2) * HOUR if always else run.start - 1.9 - (sum(name.encode()) % 19) / 10
        spare = run.room / 2
        allocated = created + 2.0 if always else run.start - min(_BEFORE_SECONDS, spare)
        bound, prepared, started = (
            (created + 2.2, created + 3.0, created + 5.0) if always
            else (allocated + 0.1, run.start - min(0.2, spare / 2), run.start + 0.6)
        )
        released = run.end + min(_AFTER_SECONDS, spare)
        labels, owners = _workload(run.plan, name)
        claims = tuple(
            self._world_claim(world, run, claim, pod, index, (created, allocated, released))
            for index, claim in enumerate(claim for container in pod.containers for claim in container.claims)
        )
        limits = {
            resource: str(len(ids)) for container in pod.containers for resource, ids in container.devices
        }
        return PodScript(
            namespace=pod.namespace, name=pod.name, claims=claims, limits=limits, labels=labels, owners=owners,
            node=world.node_name, created=created, bound=bound, prepared=prepared, started=started,
            finished=run.end, gone=run.end + 3.0,
        )

    def _world_claim(
        self, world: World, run: _Run, claim: SimClaim, pod: SimPod, index: int,
        moments: tuple[float, float, float],
    ) -> ClaimScript:
        created, allocated, released = moments
        planned = next(each for each in run.plan.claims if claim.name in (each.name, f"{each.name}-{run.number}"))
        mig = "-mig-" in claim.devices[0]
        results = []
        for place, device in enumerate(claim.devices):
            result: Object = {"request": "gpu", "driver": claim.driver, "pool": claim.pool, "device": device}
            if claim.admin_access:
                result["adminAccess"] = True
            if claim.share_ids:
                result["shareID"] = claim.share_ids[place]
            results.append(result)
        if planned.shared:  # one claim by name, older than any of its pods
            created, allocated, released = created - 60.0, allocated - 60.0, math.inf
        return ClaimScript(
            namespace=claim.namespace, name=claim.name, uid=claim.uid, node=world.node_name, results=tuple(results),
            requests=(_request(world, len(claim.devices), admin=claim.admin_access, mig=mig),),
            pod_claim="gpu" if index == 0 else f"gpu-{index}", template=None if planned.shared else planned.name,
            owner_pod="" if planned.shared else pod.name, created=created if planned.shared else created + 0.1,
            allocated=allocated, released=released, gone=math.inf if planned.shared else released + 0.8,
        )


def _request(world: World, count: int, *, admin: bool, mig: bool) -> Object:
    large = world.profile.memory_mebibytes >= _HIGH_MEMORY_MEBIBYTES and count > 1
    name = "mig.nvidia.com" if mig else "high-memory-gpu" if large and not admin else DRIVER
    return request(name, count=count, adminAccess=True) if admin else request(name, count=count)


def _runs(plan: PodPlan, at: float) -> Iterable[_Run]:
    """The pods of a plan that may have objects at `at`: the last, the present and the next."""
    if plan.duration is None:
        return (_Run(plan=plan, number=None, start=plan.start, end=math.inf, room=2.0),)
    if plan.period is None:
        return (_Run(plan=plan, number=None, start=plan.start, end=plan.start + plan.duration, room=2.0),)
    now = math.floor((at - plan.start) / plan.period)
    return tuple(
        _Run(
            plan=plan, number=number, start=plan.start + number * plan.period,
            end=plan.start + number * plan.period + plan.duration, room=plan.period - plan.duration,
        )
        for number in (now - 1, now, now + 1) if number >= 0
    )


def _workload(plan: PodPlan, name: str) -> tuple[dict[str, str], tuple[Object, ...]]:
    for start, labels, kind, api_version in _OWNERS:
        if plan.name.startswith(start):
            filled = {key: text.format(name=name, plan=plan.name) for key, text in labels.items()}
            above = name if kind == "Job" else plan.name
            above = f"{above}-{labels['pod-template-hash']}" if "pod-template-hash" in labels else above
            return filled, (owner(kind, above, plan.namespace, api_version=api_version),)
    return {}, ()


def _key(plural: str, obj: Object) -> ObjectKey:
    return plural, obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _dated(obj: Object, created: float) -> Object:
    """An object with the uid and time that an API server gives it."""
    meta = metadata(obj["kind"], obj["metadata"]["name"], created=created)
    return {**obj, "metadata": {**meta, **obj["metadata"]}}
