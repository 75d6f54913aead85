"""Which pods are kept, and what they ask for by extended resources."""

from __future__ import annotations

from typing import Any

import pytest

from claimscope.kube.kinds import extended_resources_of, is_extended_resource, pod_matters
from inventory_objects import a_pod


def container(**more: Any) -> dict[str, Any]:
    limits = {name.replace("__", "/").replace("_", "."): text for name, text in more.pop("limits", {}).items()}
    return {"name": "main", "resources": {"limits": limits}, **more}


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ("nvidia.com/gpu", True),
        ("example.com/npu", True),
        ("deviceclass.resource.kubernetes.io/gpu", True),
        ("cpu", False),
        ("hugepages-2Mi", False),
        ("attachable-volumes-aws-ebs", False),
        ("kubernetes.io/batch-cpu", False),
        ("scheduling.kubernetes.io/foo", False),
    ],
)
def test_extended_resources(resource: str, expected: bool) -> None:
    assert is_extended_resource(resource) is expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"containers": [container(limits={"cpu": "1", "memory": "1Gi"})]}, False),
        ({"containers": [container(limits={"example_com__npu": "1"})]}, True),
        ({"containers": [container(limits={"example_com__npu": "0"})]}, False),
        ({"initContainers": [container(limits={"nvidia_com__gpu": 1}, restartPolicy="Always")]}, True),
        ({"resourceClaims": [{"name": "gpu", "resourceClaimName": "c"}]}, True),
        ({"status": {"extendedResourceClaimStatus": {"resourceClaimName": "c"}}}, True),
        ({}, False),
    ],
)
def test_pods_that_matter(parts: dict[str, Any], expected: bool) -> None:
    assert pod_matters(a_pod("p", **parts)) is expected


def gpus(number: int, **more: Any) -> dict[str, Any]:
    return container(limits={"x_com__gpu": str(number)}, **more)


@pytest.mark.parametrize(
    ("initial", "containers", "expected"),
    [
        ([], [gpus(1), gpus(2)], 3),
        ([gpus(4), gpus(2)], [gpus(1)], 4),
        ([gpus(1, restartPolicy="Always"), gpus(3)], [gpus(2)], 4),
        ([gpus(3), gpus(1, restartPolicy="Always")], [gpus(1)], 3),
        ([gpus(2, restartPolicy="Always")], [gpus(2)], 4),
    ],
)
def test_init_containers_run_before_and_sidecars_beside(
    initial: list[dict[str, Any]], containers: list[dict[str, Any]], expected: int
) -> None:
    assert extended_resources_of(a_pod("p", initContainers=initial, containers=containers)) == {"x.com/gpu": expected}
