"""Requests that the admission policies let in, and those that they refuse, by the expressions that are shipped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission import Policy, Review, asked, documents, policies, refusals
from claimscope.health.model import Severity
from claimscope.taints.conditions import OUR_TYPES
from claimscope.taints.fences import KEYS as TAINT_KEYS
from claimscope.taints.fences import base_name, base_of
from claimscope.taints.machines import NOTE

Json = dict[str, Any]

AGENT = "system:serviceaccount:claimscope:claimscope-agent"
CONTROLLER = "system:serviceaccount:claimscope:claimscope-controller"
ALL_FIELDS = {"driver": "gpu.nvidia.com", "pool": "a", "device": "gpu-3"}


def a_rule(node: str = "a", *, name: str | None = None, key: str = "claimscope.io/unhealthy",
           effect: str = "NoSchedule", selector: Json | None = ALL_FIELDS, labels: Json | None = None) -> Json:
    """A rule as fencing writes it, but for what is said."""
    ours = {"app.kubernetes.io/managed-by": "claimscope", "claimscope.io/node": node}
    spec: Json = {"taint": {"key": key, "value": "xid_fatal", "effect": effect}}
    if selector is not None:
        spec["deviceSelector"] = {**selector, "pool": node} if selector is ALL_FIELDS else selector
    metadata: Json = {
        "name": name or f"claimscope.{node}.5f9a1aafdd6a.unhealthy", "annotations": {"claimscope.io/node": node},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": "u"}],
    }  # fmt: skip
    metadata |= {"labels": ours if labels is None else labels} if labels != {} else {}
    return {"metadata": metadata, "spec": spec}


def with_metadata(**changes: Any) -> Json:
    """A rule of node a with other metadata."""
    rule = a_rule()
    rule["metadata"] |= changes
    return rule


def owner(node: str = "a", **more: Any) -> list[Json]:
    return [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": "u", **more}]


def a_persons_rule(selector: Json | None = ALL_FIELDS) -> Json:
    return a_rule(name="rack-7", key="example.com/rack", labels={}, selector=selector)


def on_rule(
    operation: str, new: Json | None, old: Json | None = None, *, user: str = AGENT, node: str | None = "a",
    resource: str = "devicetaintrules",
) -> Review:
    return Review(
        user=user, node=node, operation=operation, group="resource.k8s.io", resource=resource, object=new, old=old
    )


def on_lease(
    operation: str, name: str = "claimscope-agent-a", said: str | None = "a", *, user: str = AGENT,
    node: str | None = "a",
) -> Review:
    lease: Json = {"metadata": {"name": name, "namespace": "claimscope"}, "spec": {"holderIdentity": "a"}}
    if said is not None:
        lease["metadata"]["annotations"] = {"claimscope.io/node": said}
    return Review(
        user=user, node=node, operation=operation, group="coordination.k8s.io", resource="leases",
        object=None if operation == "DELETE" else lease, old=None if operation == "CREATE" else lease,
    )


LET_IN = {
    "an agent makes its Lease": on_lease("CREATE"),
    "an agent renews its Lease": on_lease("UPDATE"),
    "an agent deletes its Lease": on_lease("DELETE"),
    "a node with dots": on_lease("UPDATE", "claimscope-agent-a.b", "a.b", node="a.b"),
    "the controller takes its Lease": on_lease("UPDATE", "claimscope-controller", None, user=CONTROLLER),
    "the controller keeps its memory": on_lease("CREATE", "claimscope-controller-memory", None, user=CONTROLLER),
    "the controller asks an agent": on_lease("UPDATE", said="a", user=CONTROLLER),
    "a person writes an agent's Lease": on_lease("UPDATE", said="b", user="ann", node=None),

    "an agent taints its device": on_rule("CREATE", a_rule()),
    "an agent announces": on_rule("CREATE", a_rule(effect="None")),
    "an agent takes another name": on_rule("CREATE", a_rule(name="claimscope.a.5f9a1aafdd6a.unhealthy-2")),
    "an agent tightens its rule": on_rule("UPDATE", a_rule(), a_rule(effect="None")),
    "an agent follows its device's name": on_rule(
        "UPDATE", a_rule(selector={"driver": "gpu.nvidia.com", "pool": "a", "device": "gpu-4"}), a_rule()
    ),
    "an agent without the uid of its node": on_rule("CREATE", with_metadata(ownerReferences=[])),
    "an agent leaves a person's finalizer and owner": on_rule(
        "UPDATE", with_metadata(finalizers=["x/y"], ownerReferences=[*owner(), *owner("b")]),
        with_metadata(finalizers=["x/y"], ownerReferences=owner("b")),
    ),
    "an agent sets right which node an edited rule is about": on_rule(
        "UPDATE", a_rule(), with_metadata(annotations={"claimscope.io/node": "b"})
    ),
    "an agent lifts its rule": on_rule("DELETE", None, a_rule()),
    "an agent on a node with dots": on_rule("CREATE", a_rule("a.b"), node="a.b"),

    "the controller taints a device": on_rule("CREATE", a_rule("b"), user=CONTROLLER, node="a"),
    "the controller for maintenance": on_rule("CREATE", a_rule("b", key="claimscope.io/maintenance"), user=CONTROLLER),
    "the controller changes its rule": on_rule("UPDATE", a_rule("b"), a_rule("b", effect="None"), user=CONTROLLER),
    "the controller lifts its rule": on_rule("DELETE", None, a_rule("b"), user=CONTROLLER),
    "the controller lifts one of its own that somebody edited": on_rule(
        "DELETE", None, a_rule("b", selector=None, key="x/y"), user=CONTROLLER
    ),
    "the controller ends an eviction": on_rule("UPDATE", a_rule(), a_rule(effect="NoExecute"), user=CONTROLLER),
    "a person taints everything": on_rule("CREATE", a_persons_rule({}), user="ann", node=None),
    "another service account of ours": on_rule(
        "CREATE", a_persons_rule(), user="system:serviceaccount:claimscope:default", node="a"
    ),
    "an agent of another namespace is none of ours": on_rule(
        "CREATE", a_persons_rule(), user="system:serviceaccount:other:claimscope-agent", node="a"
    ),
}  # fmt: skip

UNBOUND_LEASE = "agent-lease: the token is bound to no node, so no Lease is its own"
LEASE_NAME = "agent-lease: an agent writes only the Lease claimscope-agent-a"
LEASE_NODE = "agent-lease: the annotation claimscope.io/node must be a"
OTHER_LEASE = "controller-lease: the controller writes only its own Leases and those of agents"
NAME = "agent-taint-rules: the name must be claimscope.a.<hash>.<severity>"
LABELS = "agent-taint-rules: the labels must name claimscope and node a"
SELECTOR = "agent-taint-rules: the selector must name a device, the pool a and a driver of: gpu.nvidia.com"
NOTED_NODE = "agent-taint-rules: the annotation claimscope.io/node must be a"
FINALIZERS = "agent-taint-rules: an agent writes no finalizers"
OWNER = "agent-taint-rules: the only owner that an agent writes is node a"
KEY = "agent-taint-rules: the key must begin with claimscope.io/"
EFFECT = "agent-taint-rules: the effect must be None or NoSchedule"
OTHERS = "controller-taint-rules: the controller touches only rules labelled app.kubernetes.io/managed-by=claimscope"
WIDE = "controller-taint-rules: the selector must name driver, pool and device"
FOREIGN = "controller-taint-rules: the key must begin with claimscope.io/"
NO_EXECUTE = (
    "no-execute: NoExecute is not allowed here; to allow it delete the binding claimscope-no-execute of this policy"
)

REFUSED: dict[str, tuple[Review, list[str]]] = {
    "another election's Lease": (on_lease("UPDATE", "kube-scheduler", None, user=CONTROLLER), [OTHER_LEASE]),
    "a new Lease of another": (on_lease("CREATE", "claimscope-controllers", None, user=CONTROLLER), [OTHER_LEASE]),
    "another's Lease taken away": (on_lease("DELETE", "claimscope", None, user=CONTROLLER), [OTHER_LEASE]),
    "another node's Lease": (on_lease("UPDATE", "claimscope-agent-b", "b"), [LEASE_NAME, LEASE_NODE]),
    "another node's Lease made": (on_lease("CREATE", "claimscope-agent-b", "a"), [LEASE_NAME]),
    "another node's Lease deleted": (on_lease("DELETE", "claimscope-agent-b"), [LEASE_NAME]),
    "a Lease of a longer name": (on_lease("CREATE", "claimscope-agent-a.b", "a"), [LEASE_NAME]),
    "the controller's Lease": (on_lease("UPDATE", "claimscope-controller", "a"), [LEASE_NAME]),
    "findings of another node in its own Lease": (on_lease("UPDATE", said="b"), [LEASE_NODE]),
    "findings of no node": (on_lease("UPDATE", said=None), [LEASE_NODE]),
    "a Lease by a token of no node": (
        on_lease("UPDATE", node=None),
        [UNBOUND_LEASE, "agent-lease: an agent writes only the Lease claimscope-agent-",
         "agent-lease: the annotation claimscope.io/node must be "],
    ),

    "another node's device": (
        on_rule("CREATE", a_rule("b")), [NAME, LABELS, SELECTOR, NOTED_NODE, OWNER]),
    "another node's device under its own name and label": (
        on_rule("CREATE", a_rule(selector={**ALL_FIELDS, "pool": "b"})), [SELECTOR]),
    "a node whose name begins with its own": (
        on_rule("CREATE", a_rule("a.b")), [NAME, LABELS, SELECTOR, NOTED_NODE, OWNER]),
    "another driver's device": (
        on_rule("CREATE", a_rule(selector={"driver": "net.example.com", "pool": "a", "device": "nic-0"})),
        [SELECTOR]),
    "its own rule handed to another driver's device": (
        on_rule("UPDATE", a_rule(selector={**ALL_FIELDS, "driver": "net.example.com"}), a_rule()), [SELECTOR]),
    "a rule noted for another node": (
        on_rule("CREATE", with_metadata(annotations={"claimscope.io/node": "b"})), [NOTED_NODE]),
    "a rule noted for no node": (on_rule("UPDATE", with_metadata(annotations={}), a_rule()), [NOTED_NODE]),
    "a finalizer": (on_rule("CREATE", with_metadata(finalizers=["x/y"])), [FINALIZERS]),
    "a finalizer later": (on_rule("UPDATE", with_metadata(finalizers=["x/y"]), a_rule()), [FINALIZERS]),
    "a person's finalizer taken away": (
        on_rule("UPDATE", a_rule(), with_metadata(finalizers=["x/y"])), [FINALIZERS]),
    "a rule that goes with another node": (on_rule("CREATE", with_metadata(ownerReferences=owner("b"))), [OWNER]),
    "a rule that goes with another node later": (
        on_rule("UPDATE", with_metadata(ownerReferences=[*owner(), *owner("b")]), a_rule()), [OWNER]),
    "a rule that goes with something else of that name": (
        on_rule("CREATE", with_metadata(ownerReferences=owner(kind="Pod"))), [OWNER]),
    "a rule that keeps its node": (
        on_rule("CREATE", with_metadata(ownerReferences=owner(blockOwnerDeletion=True))), [OWNER]),
    "the name that node a.b would use": (
        on_rule("CREATE", a_rule(name="claimscope.a.b.5f9a1aafdd6a.unhealthy")), [NAME]),
    "the name that a node a.5f9a1aafdd6a would use": (
        on_rule("CREATE", a_rule(name="claimscope.a.5f9a1aafdd6a.5f9a1aafdd6a.lost")), [NAME]),
    "another name": (on_rule("CREATE", a_rule(name="mine")), [NAME]),
    "an empty selector": (on_rule("CREATE", a_rule(selector={})), [SELECTOR]),
    "no selector": (on_rule("CREATE", a_rule(selector=None)), [SELECTOR]),
    **{f"no {field} in the selector": (
        on_rule("CREATE", a_rule(selector={k: v for k, v in ALL_FIELDS.items() if k != field})), [SELECTOR])
       for field in ALL_FIELDS},
    **{f"an empty {field} in the selector": (
        on_rule("CREATE", a_rule(selector={**ALL_FIELDS, field: ""})), [SELECTOR]) for field in ALL_FIELDS},
    "takeover of another node's rule": (on_rule("UPDATE", a_rule(), a_rule("b")), [NAME, LABELS, SELECTOR]),
    "takeover of a person's rule": (on_rule("UPDATE", a_rule(), a_persons_rule()), [NAME, LABELS, KEY]),
    "its own rule handed to another node": (
        on_rule("UPDATE", a_rule(selector={**ALL_FIELDS, "pool": "b"}), a_rule()), [SELECTOR]),
    "its own rule widened": (on_rule("UPDATE", a_rule(selector={}), a_rule()), [SELECTOR]),
    "its own rule labelled for another node": (
        on_rule("UPDATE", a_rule(labels={"app.kubernetes.io/managed-by": "claimscope", "claimscope.io/node": "b"}),
                a_rule()), [LABELS]),
    "another node's rule lifted": (on_rule("DELETE", None, a_rule("b")), [NAME, LABELS, SELECTOR]),
    "a person's rule lifted": (on_rule("DELETE", None, a_persons_rule()), [NAME, LABELS, KEY]),
    "no labels": (on_rule("CREATE", a_rule(labels={})), [LABELS]),
    "no label of ours": (on_rule("CREATE", a_rule(labels={"claimscope.io/node": "a"})), [LABELS]),
    "a driver's key": (on_rule("CREATE", a_rule(key="gpu.nvidia.com/xid")), [KEY]),
    "a key that only looks like ours": (on_rule("CREATE", a_rule(key="claimscope.io.example.com/x")), [KEY]),
    "an agent evicts": (on_rule("CREATE", a_rule(effect="NoExecute")), [EFFECT]),
    "an agent goes on to evict": (on_rule("UPDATE", a_rule(effect="NoExecute"), a_rule()), [EFFECT]),
    "an agent's status": (
        on_rule("UPDATE", a_rule("b"), a_rule("b"), resource="devicetaintrules/status"),
        [NAME, LABELS, SELECTOR, NOTED_NODE]),
    "a rule by a token of no node": (
        on_rule("CREATE", a_rule(), node=None),
        ["agent-taint-rules: the token is bound to no node, so no rule is its own",
         "agent-taint-rules: the name must be claimscope..<hash>.<severity>",
         "agent-taint-rules: the labels must name claimscope and node ",
         "agent-taint-rules: the selector must name a device, the pool  and a driver of: gpu.nvidia.com",
         "agent-taint-rules: the annotation claimscope.io/node must be ",
         "agent-taint-rules: the only owner that an agent writes is node "],
    ),

    "the controller changes a person's rule": (
        on_rule("UPDATE", a_persons_rule(), a_persons_rule(), user=CONTROLLER), [OTHERS, FOREIGN]),
    "the controller takes a person's rule over": (
        on_rule("UPDATE", a_rule(), a_persons_rule(), user=CONTROLLER), [OTHERS]),
    "the controller lifts a person's rule": (on_rule("DELETE", None, a_persons_rule(), user=CONTROLLER), [OTHERS]),
    "the controller without its label": (on_rule("CREATE", a_rule(labels={}), user=CONTROLLER), [OTHERS]),
    "the controller drops its label": (on_rule("UPDATE", a_rule(labels={}), a_rule(), user=CONTROLLER), [OTHERS]),
    "the controller taints everything": (on_rule("CREATE", a_rule(selector={}), user=CONTROLLER), [WIDE]),
    "the controller without a selector": (on_rule("CREATE", a_rule(selector=None), user=CONTROLLER), [WIDE]),
    **{f"the controller without {field}": (
        on_rule("CREATE", a_rule(selector={k: v for k, v in ALL_FIELDS.items() if k != field}), user=CONTROLLER),
        [WIDE]) for field in ALL_FIELDS},
    "the controller with a driver's key": (
        on_rule("CREATE", a_rule(key="gpu.nvidia.com/xid"), user=CONTROLLER), [FOREIGN]),
    "the controller evicts": (on_rule("CREATE", a_rule(effect="NoExecute"), user=CONTROLLER), [NO_EXECUTE]),
    "the controller goes on to evict": (
        on_rule("UPDATE", a_rule(effect="NoExecute"), a_rule(), user=CONTROLLER), [NO_EXECUTE]),
}  # fmt: skip


@pytest.mark.parametrize("name", LET_IN)
def test_let_in(name: str) -> None:
    assert refusals(LET_IN[name]) == []


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    review, messages = REFUSED[name]
    assert refusals(review) == messages


# --- a Node's status ---

NODE: Json = {
    "metadata": {"name": "a", "labels": {"zone": "z"}, "annotations": {"note": "n"}},
    "spec": {"podCIDR": "10.0.0.0/24"},
    "status": {
        "capacity": {"cpu": "8"},
        "nodeInfo": {"kubeletVersion": "v1.37.0"},
        "conditions": [
            {"type": "Ready", "status": "True"},
            {"type": "GPUDegraded", "status": "False"},
        ],
    },
}
OURS = "node-status: only these conditions may be written: GPUDegraded, GPUUnhealthy, GPUMaintenanceReady"
STATUS = "node-status: only conditions may be written, no other status"
METADATA = "node-status: only conditions may be written, no metadata"
READY = "node-status: only the controller says that a node is ready for maintenance"
READY_NODE_CONDITIONS = (("Ready", "True"), ("GPUDegraded", "False"), ("GPUMaintenanceReady", "True"))
OWN_NODE = "node-status: an agent writes only conditions of its own node"


def changed(**parts: Any) -> Json:
    """The Node with changes, "part__member"."""
    node = copy.deepcopy(NODE)
    for path, value in parts.items():
        part, member = path.split("__")
        if value is None:
            del node[part][member]
        else:
            node[part][member] = value
    return node


def conditions(*pairs: tuple[str, str]) -> Json:
    return changed(status__conditions=[{"type": kind, "status": status} for kind, status in pairs])


FIRST = {"metadata": {"name": "a"}, "spec": {}}
STATUS_WRITES: dict[str, tuple[Json, Json, str, str | None, list[str]]] = {
    "ours": (NODE, conditions(("Ready", "True"), ("GPUDegraded", "True"), ("GPUUnhealthy", "True")), AGENT, "a", []),
    "ours taken away": (NODE, conditions(("Ready", "True")), AGENT, "a", []),
    "ours by the controller": (NODE, conditions(("Ready", "True"), ("GPUMaintenanceReady", "True")), CONTROLLER, "x",
                               []),
    "ready for maintenance": (NODE, conditions(*READY_NODE_CONDITIONS), AGENT, "a", [READY]),
    "ready for maintenance after all": (
        conditions(*READY_NODE_CONDITIONS[:2], ("GPUMaintenanceReady", "False")), conditions(*READY_NODE_CONDITIONS),
        AGENT, "a", [READY]),
    "beside what the controller says of maintenance": (
        conditions(*READY_NODE_CONDITIONS), conditions(("Ready", "True"), ("GPUDegraded", "True"),
        ("GPUMaintenanceReady", "True")), AGENT, "a", []),
    "without what a controller once said of maintenance": (
        conditions(*READY_NODE_CONDITIONS), conditions(*READY_NODE_CONDITIONS[:2]), AGENT, "a", []),
    "the first status at all": (FIRST, {**FIRST, "status": {"conditions": [{"type": "GPUDegraded"}]}}, AGENT, "a", []),
    "Ready": (NODE, conditions(("Ready", "False"), ("GPUDegraded", "False")), AGENT, "a", [OURS]),
    "Ready by the controller": (NODE, conditions(("Ready", "False")), CONTROLLER, "x", [OURS]),
    "Ready taken away": (NODE, conditions(("GPUDegraded", "False")), AGENT, "a", [OURS]),
    "another new one": (NODE, conditions(("Ready", "True"), ("X", "True")), AGENT, "a", [OURS]),
    "another node's": (NODE, conditions(("Ready", "True"), ("GPUDegraded", "True")), AGENT, "b", [OWN_NODE]),
    "by a token of no node": (NODE, NODE, AGENT, None, [OWN_NODE]),
    "capacity": (NODE, changed(status__capacity={"cpu": "9"}), AGENT, "a", [STATUS]),
    "capacity taken away": (NODE, changed(status__capacity=None), AGENT, "a", [STATUS]),
    "a field of a later version": (NODE, changed(status__declaredFeatures=["x"]), CONTROLLER, "x", [STATUS]),
    "labels": (NODE, changed(metadata__labels={"zone": "y"}), AGENT, "a", [METADATA]),
    "annotations": (NODE, changed(metadata__annotations=None), CONTROLLER, "x", [METADATA]),
    "another user": (NODE, changed(status__capacity={}), "system:node:b", None, []),
}  # fmt: skip


@pytest.mark.parametrize("name", STATUS_WRITES)
def test_the_status_of_a_node(name: str) -> None:
    old, new, user, node, messages = STATUS_WRITES[name]
    review = Review(user=user, node=node, operation="UPDATE", group="", resource="nodes/status", object=new, old=old)
    assert refusals(review) == messages


# --- taints of a Node ---


def tainted(*taints: tuple[str, str], **parts: Any) -> Json:
    """The Node with taints, key and effect, and other changes."""
    node = changed(**parts)
    if taints:
        node["spec"]["taints"] = [{"key": key, "value": "", "effect": effect} for key, effect in taints]
    return node


RACK, SICK = ("example.com/rack", "NoExecute"), ("claimscope.io/unhealthy", "NoSchedule")
KEYS = "node-taints: only taints with keys of claimscope.io/ may be written"
EFFECTS = "node-taints: the effect must be NoSchedule or PreferNoSchedule"
SPEC = "node-taints: only taints may be written, nothing else of the spec"
NOTES = "node-taints: only the annotation claimscope.io/node-taints may be written"
LABELS_OF_NODE = "node-taints: no labels, finalizers or owners may be written"
NOBODY = "node-taints: only the controller writes Nodes, and only such as there are"
OURS_EVICTS = ("claimscope.io/lost", "NoExecute")
NODE_WRITES: dict[str, tuple[Json | None, Json | None, str, list[str]]] = {
    "ours beside others": (tainted(RACK), tainted(RACK, SICK), CONTROLLER, []),
    "ours asks to prefer others": (NODE, tainted(("claimscope.io/lost", "PreferNoSchedule")), CONTROLLER, []),
    "ours taken away": (tainted(RACK, SICK), tainted(RACK), CONTROLLER, []),
    "the last one taken away": (tainted(SICK), NODE, CONTROLLER, []),
    "the record": (NODE, changed(metadata__annotations={"note": "n", NOTE: "x"}), CONTROLLER, []),
    "the record taken away": (changed(metadata__annotations={"note": "n", NOTE: "x"}), NODE, CONTROLLER, []),
    "beside what a person evicts by with our key": (
        tainted(OURS_EVICTS), tainted(OURS_EVICTS, SICK), CONTROLLER, []),
    "another's taken away": (tainted(RACK), tainted(SICK), CONTROLLER, [KEYS]),
    "another's changed": (tainted(RACK), tainted((RACK[0], "NoSchedule")), CONTROLLER, [KEYS]),
    "another's made": (NODE, tainted(("node.kubernetes.io/unschedulable", "NoSchedule")), CONTROLLER, [KEYS]),
    "NoExecute": (NODE, tainted(OURS_EVICTS), CONTROLLER, [EFFECTS]),
    "a cordon": (NODE, changed(spec__unschedulable=True), CONTROLLER, [SPEC]),
    "the rest of the spec": (NODE, changed(spec__podCIDR=None), CONTROLLER, [SPEC]),
    "another annotation": (NODE, changed(metadata__annotations={"note": "m"}), CONTROLLER, [NOTES]),
    "a request for maintenance": (
        NODE, changed(metadata__annotations={"note": "n", "claimscope.io/maintenance": "x"}), CONTROLLER, [NOTES]),
    "labels": (NODE, changed(metadata__labels={}), CONTROLLER, [LABELS_OF_NODE]),
    "an agent": (NODE, tainted(SICK), AGENT, [NOBODY]),
    "a Node made": (None, NODE, CONTROLLER, [NOBODY]),
    "a Node deleted": (NODE, None, CONTROLLER, [NOBODY]),
    "a person": (tainted(RACK), NODE, "ann", []),
}  # fmt: skip


@pytest.mark.parametrize("name", NODE_WRITES)
def test_the_taints_of_a_node(name: str) -> None:
    old, new, user, messages = NODE_WRITES[name]
    operation = "CREATE" if old is None else "DELETE" if new is None else "UPDATE"
    review = Review(user=user, node="a", operation=operation, group="", resource="nodes", object=new, old=old)
    assert refusals(review) == messages


# --- the policies themselves ---


def test_the_policies_match_the_service_accounts_that_the_rights_are_given_to() -> None:
    """A policy that names another account than the pods run as never fires, and nobody sees it."""
    accounts = {
        f"system:serviceaccount:{each['metadata']['namespace']}:{each['metadata']['name']}"
        for each in documents() if each["kind"] == "ServiceAccount"
    }  # fmt: skip
    assert accounts == {AGENT, CONTROLLER}
    bound = {
        f"system:serviceaccount:{subject['namespace']}:{subject['name']}"
        for each in documents() if each["kind"].endswith("RoleBinding") and not each["kind"].startswith("Validating")
        for subject in each["subjects"]
    }  # fmt: skip
    assert bound == accounts
    assert {name: asked(on_rule("CREATE", a_rule(), user=name)) for name in sorted(accounts)} == {
        AGENT: ["agent-taint-rules"], CONTROLLER: ["controller-taint-rules", "no-execute"],
    }
    assert {name: asked(on_lease("UPDATE", user=name)) for name in sorted(accounts)} == {
        AGENT: ["agent-lease"], CONTROLLER: ["controller-lease"],
    }


def test_every_policy_is_bound_fails_closed_and_covers_every_version() -> None:
    found = documents("admission-policy.yaml")
    made = {each["metadata"]["name"] for each in found if each["kind"] == "ValidatingAdmissionPolicy"}
    assert made == {policy.name for policy in policies()} == {
        "claimscope-agent-lease", "claimscope-agent-taint-rules", "claimscope-controller-lease",
        "claimscope-controller-taint-rules", "claimscope-no-execute", "claimscope-node-status",
        "claimscope-node-taints",
    }
    assert {each["apiVersion"] for each in found} == {"admissionregistration.k8s.io/v1"}
    for policy in policies():
        assert policy.spec["failurePolicy"] == "Fail"
        assert [rule["apiVersions"] for rule in policy.spec["matchConstraints"]["resourceRules"]] == [["*"]]


def test_an_expression_that_fails_refuses() -> None:
    lacking = a_rule()
    del lacking["spec"]["taint"]
    assert refusals(on_rule("CREATE", lacking)) == [KEY, EFFECT]
    (policy,) = (each for each in policies() if each.name == "claimscope-no-execute")
    assert isinstance(policy, Policy)
    assert list(policy.refusals(on_rule("CREATE", lacking, user=CONTROLLER))) == [NO_EXECUTE.partition(": ")[2]]


def test_each_validation_is_what_refuses_something_alone() -> None:
    """A validation that others cover may be wrong without anybody seeing it; of a token of no node all speak."""
    alone = [messages[0] for _, messages in REFUSED.values() if len(messages) == 1]
    tables = ([row[4] for row in STATUS_WRITES.values()], [row[3] for row in NODE_WRITES.values()])
    alone += [messages[0] for table in tables for messages in table if len(messages) == 1]
    told = {policy.name.removeprefix("claimscope-"): len(policy.spec["validations"]) for policy in policies()}
    assert {name: len({message for message in alone if message.startswith(f"{name}: ")}) for name in told} == {
        **told, "agent-lease": 2, "agent-taint-rules": 8,
    }


def test_the_policies_say_what_the_code_writes() -> None:
    (status,) = (each for each in policies() if each.name == "claimscope-node-status")
    (ours,) = (each["expression"] for each in status.spec["variables"] if each["name"] == "ours")
    assert ours == str(list(OUR_TYPES))
    (taints,) = (each for each in policies() if each.name == "claimscope-node-taints")
    (record,) = (each["expression"] for each in taints.spec["variables"] if each["name"] == "record")
    assert record == f"'{NOTE}'"
    assert all(key.startswith("claimscope.io/") for key in TAINT_KEYS.values())


# --- names ---

LABEL = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
NODES = st.lists(LABEL, min_size=1, max_size=4).map(".".join)


@given(NODES, st.one_of(NODES, st.none()), LABEL, st.sampled_from(list(TAINT_KEYS)))
def test_no_node_can_take_the_name_of_anothers_rule(
    node: str, other: str | None, more: str, severity: Severity
) -> None:
    """Not with its own labels and pool either: the other one would find its name taken."""
    other = f"{node}.{more}" if other is None else other
    name = base_name(other, "GPU-1", severity)
    own = on_rule("CREATE", a_rule(other, name=name), node=other)
    assert refusals(own) == []
    assert refusals(on_rule("CREATE", a_rule(other, name=f"{name}-12"), node=other)) == []
    if other != node:
        message = f"agent-taint-rules: the name must be claimscope.{node}.<hash>.<severity>"
        assert refusals(on_rule("CREATE", a_rule(node, name=name), node=node)) == [message]


@pytest.mark.parametrize("node", ["a", "a" * 63, ".".join(["n" * 49] * 5)[:253], f"{'n' * 199}.{'n' * 50}"])
def test_a_name_fits_and_its_number_can_be_taken_off(node: str) -> None:
    for severity in TAINT_KEYS:
        name = base_name(node, "GPU-1", severity)
        assert len(f"{name}-9999") <= 253
        assert all(part and part[0] != "-" != part[-1] for part in name.split("."))
        assert base_of(f"{name}-2") == base_of(name) == name
