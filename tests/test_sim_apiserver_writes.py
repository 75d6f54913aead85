"""The simulated API server writes as a real one does: literal requests and answers over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sim_api import (
    ALL_CLAIMS,
    APPLY,
    CLAIMS,
    JSON_PATCH,
    LEASE_PATH,
    MERGE,
    POD_PATH,
    RULES,
    Client,
    Json,
    named,
    rule,
    serving,
    short,
)


@pytest.fixture
async def sim() -> AsyncIterator[Client]:
    async with serving() as (_, client):
        yield client


# ---- Create ----------------------------------------------------------------------------------------------------


async def test_create_fills_in_what_the_server_knows(sim: Client) -> None:
    status, made = await sim.ask("POST", CLAIMS, named("c", spec={"devices": {}}, status={"reservedFor": []}))
    assert status == 201
    assert made == {
        "kind": "ResourceClaim",
        "apiVersion": "resource.k8s.io/v1",
        "metadata": {
            "name": "c",
            "namespace": "ml",
            "uid": made["metadata"]["uid"],
            "creationTimestamp": "2026-11-21T11:23:32Z",
            "resourceVersion": "2",
            "managedFields": [
                {
                    "manager": "tester",
                    "operation": "Update",
                    "apiVersion": "resource.k8s.io/v1",
                    "time": "2026-11-21T11:23:32Z",
                    "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:spec": {"f:devices": {}}},
                }
            ],
        },
        "spec": {"devices": {}},
    }
    assert await sim.get(f"{CLAIMS}/c") == made


async def test_create_makes_a_name(sim: Client) -> None:
    made = [(await sim.ask("POST", CLAIMS, {"metadata": {"generateName": "train-"}}))[1]["metadata"] for _ in range(2)]
    assert [meta["generateName"] for meta in made] == ["train-", "train-"]
    assert all(meta["name"].startswith("train-") and len(meta["name"]) == 11 for meta in made)
    assert made[0]["name"] != made[1]["name"]
    assert made[0]["uid"] != made[1]["uid"]


async def test_create_twice_is_refused(sim: Client) -> None:
    await sim.ask("POST", CLAIMS, named("c"))
    assert await sim.ask("POST", CLAIMS, named("c")) == (
        409,
        {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": 'resourceclaims.resource.k8s.io "c" already exists',
            "reason": "AlreadyExists",
            "details": {"name": "c", "group": "resource.k8s.io", "kind": "resourceclaims"},
            "code": 409,
        },
    )


@pytest.mark.parametrize(
    ("body", "code", "reason", "message"),
    [
        (
            {"metadata": {}},
            422,
            "Invalid",
            'ResourceClaim.resource.k8s.io "" is invalid: metadata.name: Required value: name or generateName is '
            "required",
        ),
        (
            named("c", "other"),
            400,
            "BadRequest",
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            {"apiVersion": "resource.k8s.io/v1beta1", **named("c")},
            400,
            "BadRequest",
            "the API version in the data (resource.k8s.io/v1beta1) does not match the expected API version "
            "(resource.k8s.io/v1)",
        ),
        (
            named("c", meta={"resourceVersion": "5"}),
            500,
            None,
            "resourceVersion should not be set on objects to be created",
        ),
        ([], 400, "BadRequest", "the body of the request is not an object with metadata"),
    ],
)
async def test_bad_create_is_refused(sim: Client, body: object, code: int, reason: str | None, message: str) -> None:
    status, answer = await sim.ask("POST", CLAIMS, body)
    assert (status, answer["code"], answer.get("reason"), answer["message"]) == (code, code, reason, message)
    assert (await sim.get(CLAIMS))["items"] == []


# ---- Update ----------------------------------------------------------------------------------------------------


async def test_lease_update_needs_the_latest_version(sim: Client) -> None:
    _, made = await sim.ask("POST", LEASE_PATH, named("lead", spec={"holderIdentity": "a"}))
    mine = {**made, "spec": {"holderIdentity": "b"}}
    status, after = await sim.ask("PUT", f"{LEASE_PATH}/lead", mine)
    assert (status, after["spec"], after["metadata"]["resourceVersion"]) == (200, {"holderIdentity": "b"}, "3")
    status, answer = await sim.ask("PUT", f"{LEASE_PATH}/lead", {**mine, "spec": {"holderIdentity": "c"}})
    assert (status, answer["reason"], answer["message"]) == (
        409,
        "Conflict",
        'Operation cannot be fulfilled on leases.coordination.k8s.io "lead": the object has been modified; please '
        "apply your changes to the latest version and try again",
    )
    status, answer = await sim.ask("PUT", f"{LEASE_PATH}/lead", named("lead", spec={}))
    assert (status, answer["message"]) == (
        422,
        'Lease.coordination.k8s.io "lead" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified '
        "for an update",
    )
    assert (await sim.get(f"{LEASE_PATH}/lead"))["spec"] == {"holderIdentity": "b"}


async def test_put_of_what_is_not_there(sim: Client) -> None:
    status, answer = await sim.ask("PUT", f"{CLAIMS}/c", named("c"))
    assert (status, answer["message"]) == (404, 'resourceclaims.resource.k8s.io "c" not found')
    status, answer = await sim.ask("PUT", f"{POD_PATH}/p", named("p"))
    assert (status, answer["message"], answer["details"]) == (404, 'pods "p" not found', {"name": "p", "kind": "pods"})
    status, answer = await sim.ask("PUT", f"{LEASE_PATH}/lead", named("lead"))
    assert (status, answer["metadata"]["name"]) == (201, "lead")  # leases may be made so


async def test_update_that_changes_nothing_writes_nothing(sim: Client) -> None:
    _, made = await sim.ask("POST", CLAIMS, named("c", spec={"a": 1}))
    assert await sim.ask("PUT", f"{CLAIMS}/c", made) == (200, made)


async def test_generation_counts_changes_of_the_spec_alone(sim: Client) -> None:
    _, made = await sim.ask("POST", RULES, rule())
    _, relabelled = await sim.ask("PATCH", f"{RULES}/r", {"metadata": {"labels": {"a": "b"}}}, MERGE)
    _, respecified = await sim.ask("PATCH", f"{RULES}/r", {"spec": {"taint": {"effect": "None"}}}, MERGE)
    _, observed = await sim.ask("PATCH", f"{RULES}/r/status", {"status": {"conditions": []}}, MERGE)
    assert [one["metadata"]["generation"] for one in (made, relabelled, respecified, observed)] == [1, 1, 2, 2]


async def test_status_and_the_rest_are_written_apart(sim: Client) -> None:
    await sim.ask("POST", CLAIMS, named("c", spec={"devices": {}}))
    body = named("c", spec={"devices": {"x": 1}}, status={"allocation": {"devices": {}}})
    status, after = await sim.ask("PUT", f"{CLAIMS}/c/status", body)
    assert (status, after["spec"], after["status"]) == (200, {"devices": {}}, {"allocation": {"devices": {}}})
    body = named("c", spec={"devices": {}}, status={}, meta={"labels": {"a": "b"}})
    _, after = await sim.ask("PUT", f"{CLAIMS}/c", body)
    assert (after["metadata"]["labels"], after["status"]) == ({"a": "b"}, {"allocation": {"devices": {}}})
    assert [(entry["manager"], entry.get("subresource")) for entry in after["metadata"]["managedFields"]] == [
        ("tester", "status"),
        ("tester", None),
    ]


async def test_spec_of_a_claim_cannot_be_changed(sim: Client) -> None:
    await sim.ask("POST", CLAIMS, named("c", spec={"devices": {}}))
    status, answer = await sim.ask("PATCH", f"{CLAIMS}/c", {"spec": {"devices": None}}, MERGE)
    assert (status, answer["message"]) == (
        422,
        'ResourceClaim.resource.k8s.io "c" is invalid: spec: Invalid value: {}: field is immutable',
    )


# ---- Patch -----------------------------------------------------------------------------------------------------


async def test_merge_patch_merges_objects_and_replaces_lists(sim: Client) -> None:
    await sim.ask("POST", "/api/v1/nodes", named("n", spec={"taints": [1, 2], "podCIDR": "x", "unschedulable": True}))
    patch = {"metadata": {"labels": {"a": "b"}}, "spec": {"taints": [3], "unschedulable": None}}
    status, after = await sim.ask("PATCH", "/api/v1/nodes/n", patch, MERGE)
    assert (status, after["spec"], after["metadata"]["labels"]) == (200, {"taints": [3], "podCIDR": "x"}, {"a": "b"})


async def test_merge_patch_with_a_stale_version_is_a_conflict(sim: Client) -> None:
    await sim.ask("POST", RULES, rule())
    patch = {"metadata": {"resourceVersion": "1"}, "spec": {"taint": {"effect": "None"}}}
    status, answer = await sim.ask("PATCH", f"{RULES}/r", patch, MERGE)
    assert (status, answer["reason"]) == (409, "Conflict")


async def test_json_patch_does_each_operation(sim: Client) -> None:
    await sim.ask("POST", "/api/v1/nodes", named("n", spec={"list": [1, 2], "a": {"b/c": 1}, "gone": 1}))
    operations = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": "2"},
        {"op": "add", "path": "/spec/list/-", "value": 3},
        {"op": "add", "path": "/spec/list/0", "value": 0},
        {"op": "replace", "path": "/spec/a/b~1c", "value": 2},
        {"op": "remove", "path": "/spec/gone"},
        {"op": "copy", "from": "/spec/list", "path": "/spec/copied"},
        {"op": "move", "from": "/spec/a/b~1c", "path": "/spec/moved"},
    ]
    status, after = await sim.ask("PATCH", "/api/v1/nodes/n", operations, JSON_PATCH)
    assert (status, after["spec"]) == (200, {"list": [0, 1, 2, 3], "a": {}, "copied": [0, 1, 2, 3], "moved": 2})


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/metadata/resourceVersion", "value": "1"},
        {"op": "remove", "path": "/spec/absent"},
        {"op": "replace", "path": "/spec/absent", "value": 1},
        {"op": "add", "path": "/spec/a/b/c", "value": 1},
        {"op": "invent", "path": "/spec"},
    ],
)
async def test_json_patch_that_does_not_fit_changes_nothing(sim: Client, operation: Json) -> None:
    await sim.ask("POST", "/api/v1/nodes", named("n", spec={"a": 1}))
    add = {"op": "add", "path": "/spec/x", "value": 1}
    status, answer = await sim.ask("PATCH", "/api/v1/nodes/n", [add, operation], JSON_PATCH)
    assert (status, answer["reason"], answer["message"]) == (
        422,
        "Invalid",
        "the server rejected our request due to an error in our request",
    )
    assert (await sim.get("/api/v1/nodes/n"))["spec"] == {"a": 1}


async def test_apply_creates_then_merges_then_drops_what_it_no_longer_says(sim: Client) -> None:
    status, made = await sim.ask("PATCH", f"{RULES}/r", rule(), APPLY, fieldManager="claimscope")
    assert (status, made["spec"]) == (201, rule()["spec"])
    assert made["metadata"]["managedFields"] == [
        {
            "manager": "claimscope",
            "operation": "Apply",
            "apiVersion": "resource.k8s.io/v1",
            "time": "2026-11-21T11:23:32Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:deviceSelector": {"f:pool": {}}, "f:taint": {"f:effect": {}, "f:key": {}}}},
        }
    ]
    assert await sim.ask("PATCH", f"{RULES}/r", rule(), APPLY, fieldManager="claimscope") == (200, made)
    await sim.ask("PATCH", f"{RULES}/r", {"spec": {"taint": {"value": "x"}}}, MERGE)
    yaml = b"""
apiVersion: resource.k8s.io/v1
kind: DeviceTaintRule
metadata: {name: r}
spec:
  taint: {key: broken, effect: NoExecute}
"""
    status, after = await sim.ask("PATCH", f"{RULES}/r", yaml, APPLY, fieldManager="claimscope")
    assert (status, after["spec"]) == (200, {"taint": {"key": "broken", "value": "x", "effect": "NoExecute"}})


async def test_apply_over_anothers_field_needs_force(sim: Client) -> None:
    await sim.ask("POST", RULES, rule("NoSchedule"), fieldManager="admin")
    status, answer = await sim.ask("PATCH", f"{RULES}/r", rule("NoExecute"), APPLY, fieldManager="claimscope")
    assert (status, answer["reason"], answer["message"], answer["details"]) == (
        409,
        "Conflict",
        'Apply failed with 1 conflict: conflict with "admin" using resource.k8s.io/v1: .spec.taint.effect',
        {
            "causes": [
                {
                    "reason": "FieldManagerConflict",
                    "message": 'conflict with "admin" using resource.k8s.io/v1',
                    "field": ".spec.taint.effect",
                }
            ]
        },
    )
    status, after = await sim.ask(
        "PATCH", f"{RULES}/r", rule("NoExecute"), APPLY, fieldManager="claimscope", force="true"
    )
    assert (status, after["spec"]["taint"]["effect"], after["metadata"]["generation"]) == (200, "NoExecute", 2)
    owners = {entry["manager"]: entry["fieldsV1"] for entry in after["metadata"]["managedFields"]}
    assert owners["admin"] == {"f:spec": {"f:deviceSelector": {"f:pool": {}}, "f:taint": {"f:key": {}}}}


async def test_apply_needs_a_manager_and_a_kind(sim: Client) -> None:
    status, answer = await sim.ask("PATCH", f"{RULES}/r", rule(), APPLY)
    assert (status, answer["message"]) == (
        422,
        'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch',
    )
    status, answer = await sim.ask("PATCH", f"{RULES}/r", named("r"), APPLY, fieldManager="x")
    assert (status, answer["reason"]) == (400, "BadRequest")


async def test_apply_to_status_leaves_the_spec(sim: Client) -> None:
    await sim.ask("POST", RULES, rule())
    body = {**rule("None"), "status": {"conditions": [{"type": "X"}]}}
    status, after = await sim.ask("PATCH", f"{RULES}/r/status", body, APPLY, fieldManager="claimscope")
    assert (status, after["status"], after["spec"]) == (200, {"conditions": [{"type": "X"}]}, rule()["spec"])


async def test_conditions_are_merged_by_their_type(sim: Client) -> None:
    await sim.ask("POST", RULES, rule())
    theirs, ours = {"type": "Theirs", "status": "True"}, {"type": "Ours", "status": "False"}

    async def apply(manager: str, *entries: object, **query: str) -> tuple[int, object]:
        body = {**named("r"), "apiVersion": "resource.k8s.io/v1", "kind": "DeviceTaintRule",
                "status": {"conditions": list(entries)}}
        status, after = await sim.ask("PATCH", f"{RULES}/r/status", body, APPLY, fieldManager=manager, **query)
        return status, after.get("status", {}).get("conditions") if status == 200 else after["reason"]

    assert await apply("they", theirs) == (200, [theirs])
    assert await apply("we", ours) == (200, [theirs, ours])
    assert await apply("we", {**ours, "status": "True"}) == (200, [theirs, {**ours, "status": "True"}])
    assert await apply("we", {**theirs, "status": "False"}) == (409, "Conflict")
    assert await apply("we") == (200, [theirs])


async def test_dry_run_answers_and_writes_nothing(sim: Client) -> None:
    status, made = await sim.ask("POST", RULES, rule(), dryRun="All")
    assert (status, made["metadata"]["name"]) == (201, "r")
    assert (await sim.get(RULES))["items"] == []


# ---- Delete ----------------------------------------------------------------------------------------------------


async def test_delete_says_what_went(sim: Client) -> None:
    _, made = await sim.ask("POST", CLAIMS, named("c"))
    assert await sim.ask("DELETE", f"{CLAIMS}/c") == (
        200,
        {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {
                "name": "c",
                "group": "resource.k8s.io",
                "kind": "resourceclaims",
                "uid": made["metadata"]["uid"],
            },
        },
    )
    assert (await sim.ask("DELETE", f"{CLAIMS}/c"))[0] == 404


async def test_finalizers_hold_an_object_until_they_are_gone(sim: Client) -> None:
    finalizer = "resource.kubernetes.io/delete-protection"
    await sim.ask("POST", CLAIMS, named("c", meta={"finalizers": [finalizer]}))
    async with sim.watch(CLAIMS, resourceVersion="2") as stream:
        status, going = await sim.ask("DELETE", f"{CLAIMS}/c")
        assert (status, going["metadata"]["deletionTimestamp"]) == (200, "2026-11-21T11:23:32Z")
        status, _ = await sim.ask("PATCH", f"{CLAIMS}/c", {"metadata": {"finalizers": None}}, MERGE)
        assert status == 200
        assert [await short(stream) for _ in range(2)] == [("MODIFIED", "c", "3"), ("DELETED", "c", "4")]
    assert (await sim.ask("GET", f"{CLAIMS}/c"))[0] == 404


async def test_pod_on_a_node_ends_when_its_kubelet_says_so(sim: Client) -> None:
    await sim.ask("POST", POD_PATH, named("p", spec={"nodeName": "n"}))
    _, going = await sim.ask("DELETE", f"{POD_PATH}/p")
    assert going["metadata"]["deletionTimestamp"] == "2026-11-21T11:24:02Z"
    assert going["metadata"]["deletionGracePeriodSeconds"] == 30
    _, gone = await sim.ask("DELETE", f"{POD_PATH}/p", {"gracePeriodSeconds": 0})
    assert gone["status"] == "Success"


async def test_delete_with_preconditions(sim: Client) -> None:
    _, made = await sim.ask("POST", CLAIMS, named("c"))
    status, answer = await sim.ask("DELETE", f"{CLAIMS}/c", {"preconditions": {"uid": "other"}})
    assert (status, answer["message"]) == (
        409,
        'Operation cannot be fulfilled on resourceclaims.resource.k8s.io "c": Precondition failed: UID in '
        f"precondition: other, UID in object meta: {made['metadata']['uid']}",
    )


# ---- What is not understood ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "content_type", "code", "reason"),
    [
        ("PUT", CLAIMS, "application/json", 405, "MethodNotAllowed"),
        ("POST", f"{CLAIMS}/c", "application/json", 405, "MethodNotAllowed"),
        ("DELETE", "/apis/resource.k8s.io/v1", "application/json", 405, "MethodNotAllowed"),
        ("PATCH", f"{CLAIMS}/c", "application/json", 415, "UnsupportedMediaType"),
        ("PATCH", f"{CLAIMS}/c", "application/strategic-merge-patch+json", 415, "UnsupportedMediaType"),
        ("POST", CLAIMS, "text/plain", 415, "UnsupportedMediaType"),
        ("PATCH", f"{CLAIMS}/absent", MERGE, 404, "NotFound"),
        ("POST", ALL_CLAIMS, "application/json", 405, "MethodNotAllowed"),
        ("POST", "/apis/resource.k8s.io/v1/nothings", "application/json", 404, "NotFound"),
        ("PUT", "/apis/resource.k8s.io/v1/deviceclasses/d/status", "application/json", 404, "NotFound"),
    ],
)
async def test_wrong_requests(sim: Client, method: str, path: str, content_type: str, code: int, reason: str) -> None:
    status, answer = await sim.ask(method, path, named("c", "ml"), content_type)
    assert (status, answer["code"], answer["reason"]) == (code, code, reason)


async def test_body_that_is_no_json(sim: Client) -> None:
    status, answer = await sim.ask("POST", CLAIMS, b'{"metadata":')
    assert (status, answer["reason"]) == (400, "BadRequest")
