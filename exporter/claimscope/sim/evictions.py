"""Which pods go because of a NoExecute rule, and what does the cluster say of each rule?

As the device taint eviction controller of Kubernetes 1.36 does it (pkg/controller/devicetainteviction), for taints by
rules alone: a rule of effect NoExecute deletes the pods that hold a device it selects and do not tolerate it, whatever
disruption budgets say; of every rule it says in the condition EvictionInProgress what it does. Nothing here removes a
deleted pod or a reservation of its claim: that is the kubelet's and the claim controller's work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from claimscope.claims.taints import tolerates
from claimscope.kube.objects import Taint, Toleration
from claimscope.sim.api.errors import MERGE_PATCH
from claimscope.sim.api.kinds import PODS, RESOURCE_CLAIMS
from claimscope.sim.api.server import SimApiServer
from claimscope.sim.api.store import Kind
from claimscope.sim.api.writes import Target

Json = dict[str, Any]

MANAGER: Final = "device-taint-eviction-controller"
_Pod = tuple[str, str, str]  # namespace, name, uid


class DeviceTaintEvictions:
    """The controller; each `step` is one pass over everything."""

    def __init__(self, server: SimApiServer, wall: Callable[[], float]) -> None:
        self._server = server
        self._wall = wall
        self._evicted: Counter[str] = Counter()  # by uid of the rule, since this controller started

    def step(self) -> list[str]:
        """Deletes what has to go, and says so in the rules. Answers the names of the pods."""
        deleted: list[str] = []
        for kind in self._server.store.kinds:
            if kind.plural == "devicetaintrules":
                for rule in self._objects(kind):
                    deleted += self._follow(kind, rule)
        return deleted

    def _follow(self, kind: Kind, rule: Json) -> list[str]:
        pods = list(dict.fromkeys(self._pods(rule)))
        self._say(kind, rule, pods)
        if rule["spec"]["taint"]["effect"] != "NoExecute":
            return []
        for namespace, name, uid in pods:
            target = Target(kind=PODS, namespace=namespace, name=name, manager=MANAGER)
            self._server.writes.delete(target, {"preconditions": {"uid": uid}})
            self._evicted[rule["metadata"]["uid"]] += 1
        return [name for _, name, _ in pods]

    def _pods(self, rule: Json) -> Iterator[_Pod]:
        """Those that are to go because of it, or would be."""
        named = rule["spec"].get("deviceSelector") or {}
        taint = Taint(key=rule["spec"]["taint"]["key"], value=rule["spec"]["taint"].get("value", ""),
                      effect="NoExecute")  # fmt: skip
        for claim in self._objects(RESOURCE_CLAIMS):
            status = claim.get("status") or {}
            results = ((status.get("allocation") or {}).get("devices") or {}).get("results") or ()
            held = [each for each in results if all(each[key] == value for key, value in named.items())]
            if all(tolerates(_lasting(each), taint) for each in held):
                continue
            for user in status.get("reservedFor") or ():
                pod = self._server.get(PODS, user["name"], claim["metadata"]["namespace"])
                meta: Json = {} if pod is None else pod["metadata"]
                if meta.get("uid") == user["uid"] and "deletionTimestamp" not in meta:
                    yield claim["metadata"]["namespace"], user["name"], user["uid"]

    def _say(self, kind: Kind, rule: Json, pods: Iterable[_Pod]) -> None:
        status, reason, message = self._said(rule, list(pods))
        before: Json = next(iter((rule.get("status") or {}).get("conditions") or ()), {})
        condition = {
            "type": "EvictionInProgress", "status": status, "reason": reason, "message": message,
            "observedGeneration": rule["metadata"].get("generation", 0),
            "lastTransitionTime": before["lastTransitionTime"] if before.get("status") == status else self._stamp(),
        }
        if condition != before:
            target = Target(kind=kind, name=rule["metadata"]["name"], subresource="status", manager=MANAGER)
            self._server.writes.patch(target, MERGE_PATCH, {"status": {"conditions": [condition]}})

    def _said(self, rule: Json, pods: list[_Pod]) -> tuple[str, str, str]:
        effect, evicted = rule["spec"]["taint"]["effect"], self._evicted[rule["metadata"]["uid"]]
        namespaces = len({namespace for namespace, _, _ in pods})
        places = "1 namespace" if namespaces == 1 else f"{namespaces} different namespaces"
        counted = "1 pod" if len(pods) == 1 else f"{len(pods)} pods"
        if effect == "None":
            return "False", "NoEffect", f"{counted} would be evicted in {places} if the effect was NoExecute."
        if effect != "NoExecute":
            return "False", "OtherEffect", "Eviction only happens for the NoExecute effect."
        if pods:
            return "True", "PodsPendingEviction", f"{counted} need{'s' * (len(pods) == 1)} to be evicted in {places}."
        if evicted:
            text = "1 pod" if evicted == 1 else f"{evicted} pods"
            return "False", "Completed", f"{text} evicted since starting the controller."
        return "False", "NotStarted", ""

    def _objects(self, kind: Kind) -> list[Json]:
        stored = self._server.store.table(kind).objects.values()
        return [msgspec.json.decode(each.body(kind)) for each in stored]

    def _stamp(self) -> str:
        return datetime.fromtimestamp(int(self._wall()), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _lasting(result: Json) -> list[Toleration]:
    """Tolerations of an allocated device without those that end."""
    found = (each for each in result.get("tolerations") or () if each.get("tolerationSeconds") is None)
    return [msgspec.convert(each, Toleration) for each in found]
