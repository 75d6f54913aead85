"""How far fencing may go, by what the API server is and serves."""

from __future__ import annotations

import pytest

from claimscope.kube.api import ApiClient, ApiError, ApiReason, OpenAccess
from claimscope.sim.api.kinds import ALL_KINDS, DEVICE_TAINT_RULES, in_version
from claimscope.sim.api.server import HttpFault, SimApiServer
from claimscope.taints.guard import Allowed, allowed, examine
from claimscope.taints.model import Mode

WITHOUT_RULES = tuple(kind for kind in ALL_KINDS if kind is not DEVICE_TAINT_RULES)


@pytest.mark.parametrize(
    ("version", "served", "mode", "reason"),
    [
        ("v1.37.0", "v1", Mode.ENFORCE, ""),
        ("v1.37.0", "v1beta2", Mode.ENFORCE, ""),
        ("v1.36.3", "v1beta2", Mode.ENFORCE, ""),
        ("v1.36.10", "v1beta2", Mode.ENFORCE, ""),
        ("v1.36.3-gke.1187", "v1beta2", Mode.ENFORCE, ""),
        ("v1.36.3+k3s1", "v1beta2", Mode.ENFORCE, ""),
        ("v2.0.0", "v1", Mode.ENFORCE, ""),
        ("v1.36.0", "v1beta2", Mode.OBSERVE, "scheduler_bug"),
        ("v1.36.1-eks-3f7", "v1beta2", Mode.OBSERVE, "scheduler_bug"),
        ("v1.36.2", "v1beta2", Mode.OBSERVE, "scheduler_bug"),
        ("v1.36.2+rke2r1", "v1", Mode.OBSERVE, "scheduler_bug"),
        ("v1.36", "v1beta2", Mode.OBSERVE, "scheduler_bug"),
        ("v1.36.3-rc.0", "v1beta2", Mode.OBSERVE, "scheduler_bug"),
        ("v1.35.4", "v1beta2", Mode.OBSERVE, "scheduler_bug"),
        ("v1.37.0", None, Mode.OBSERVE, "api_absent"),
        (None, None, Mode.OBSERVE, "api_absent"),
        (None, "v1", Mode.ANNOUNCE, "version_unknown"),
        ("built at home", "v1", Mode.ANNOUNCE, "version_unknown"),
        (None, "v1beta2", Mode.OBSERVE, "version_unknown"),
        ("", "v1beta2", Mode.OBSERVE, "version_unknown"),
    ],
)
def test_versions(version: str | None, served: str | None, mode: Mode, reason: str) -> None:
    found = allowed(version, served)
    assert (found.mode, found.reason, found.version) == (mode, reason, served)
    assert bool(found.text) == bool(reason)


def test_the_unsafe_scheduler_is_named_with_the_upstream_issue_and_the_cure() -> None:
    assert allowed("v1.36.2", "v1beta2").text == (
        "kube-scheduler of Kubernetes v1.36.2 exits while any DeviceTaintRule exists, so none is written "
        "(https://github.com/kubernetes/kubernetes/issues/139651); upgrade to 1.36.3 or newer"
    )


def test_a_limit_lowers_and_never_raises() -> None:
    limit = Allowed(mode=Mode.ANNOUNCE, version="v1", reason="version_unknown")
    assert [limit.limit(mode) for mode in Mode] == [Mode.OBSERVE, Mode.ANNOUNCE, Mode.ANNOUNCE]
    assert [limit.lowers(mode) for mode in Mode] == [False, False, True]


async def _examined(server: SimApiServer) -> Allowed:
    api = ApiClient(OpenAccess(await server.start()))
    try:
        return await examine(api)
    finally:
        await api.close()
        await server.stop()


async def test_a_server_with_the_api() -> None:
    assert await _examined(SimApiServer(ALL_KINDS, git_version="v1.37.1")) == Allowed(mode=Mode.ENFORCE, version="v1")


async def test_a_server_with_the_beta_alone() -> None:
    kinds = (*WITHOUT_RULES, in_version(DEVICE_TAINT_RULES, "v1beta2"))
    found = await _examined(SimApiServer(kinds, git_version="v1.36.3"))
    assert found == Allowed(mode=Mode.ENFORCE, version="v1beta2")


async def test_a_server_without_the_api() -> None:
    assert (await _examined(SimApiServer(WITHOUT_RULES, git_version="v1.37.1"))).reason == "api_absent"


async def test_who_may_not_read_the_version_announces_at_most() -> None:
    server = SimApiServer(ALL_KINDS)
    server.fail("/version", HttpFault(status=403))
    assert (await _examined(server)).mode is Mode.ANNOUNCE


async def test_a_server_that_fails_says_nothing_of_what_it_serves() -> None:
    server = SimApiServer(ALL_KINDS)
    server.fail("/apis/resource.k8s.io", HttpFault(status=503))
    with pytest.raises(ApiError) as caught:
        await _examined(server)
    assert caught.value.reason is ApiReason.SERVER_ERROR
