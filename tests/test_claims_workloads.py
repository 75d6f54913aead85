"""One literal pod a kind of workload, with the labels and owners that its controller writes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from claimscope.claims.model import Workload
from claimscope.claims.workloads import workload_of
from claimscope.kube.objects import Pod, ResourceClaim

CLAIM = msgspec.convert({"metadata": {"name": "c", "namespace": "ns"}}, ResourceClaim)


def owned(kind: str, name: str, api_version: str = "apps/v1") -> dict[str, Any]:
    return {"ownerReferences": [{"apiVersion": api_version, "kind": kind, "name": name, "controller": True}]}


def pod_of(spec: dict[str, Any] | None = None, **metadata: Any) -> Pod:
    return msgspec.convert({"metadata": {"name": "p-0", "namespace": "ns", **metadata}, "spec": spec or {}}, Pod)


@pytest.mark.parametrize(
    ("metadata", "kind", "name"),
    [
        ({}, "Pod", "p-0"),
        (owned("Job", "train", "batch/v1"), "Job", "train"),
        ({"labels": {"batch.kubernetes.io/job-name": "train"}}, "Job", "train"),
        ({"labels": {"job-name": "train"}}, "Job", "train"),
        ({"creationTimestamp": "2026-11-21T11:23:32Z", **owned("Job", "nightly-29921003", "batch/v1")},
         "CronJob", "nightly"),
        ({"creationTimestamp": "2026-11-21T11:23:32Z", **owned("Job", "train-20261121", "batch/v1")},
         "Job", "train-20261121"),
        ({"labels": {"pod-template-hash": "7d9c8b6f5"}, **owned("ReplicaSet", "serve-llm-7d9c8b6f5")},
         "Deployment", "serve-llm"),
        (owned("ReplicaSet", "serve-llm-7d9c8b6f5"), "ReplicaSet", "serve-llm-7d9c8b6f5"),
        (owned("StatefulSet", "db"), "StatefulSet", "db"),
        (owned("DaemonSet", "dcgm"), "DaemonSet", "dcgm"),
        (owned("Notebook", "lab", "kubeflow.org/v1"), "Notebook", "lab"),
        ({"labels": {"jobset.sigs.k8s.io/jobset-name": "pretrain", "batch.kubernetes.io/job-name": "pretrain-w-0"},
          **owned("Job", "pretrain-w-0", "batch/v1")}, "JobSet", "pretrain"),
        ({"labels": {"ray.io/cluster": "rc"}, **owned("RayCluster", "rc", "ray.io/v1")}, "RayCluster", "rc"),
        ({"labels": {"ray.io/cluster": "tune-x7k2p", "ray.io/originated-from-crd": "RayJob",
                     "ray.io/originated-from-cr-name": "tune"}, **owned("RayCluster", "tune-x7k2p", "ray.io/v1")},
         "RayJob", "tune"),
        ({"labels": {"ray.io/cluster": "chat-abcde", "ray.io/originated-from-crd": "RayService",
                     "ray.io/originated-from-cr-name": "chat"}}, "RayService", "chat"),
        ({"labels": {"leaderworkerset.sigs.k8s.io/name": "llama", "leaderworkerset.sigs.k8s.io/group-index": "0"},
          **owned("StatefulSet", "llama-0")}, "LeaderWorkerSet", "llama"),
        ({"labels": {"serving.kserve.io/inferenceservice": "bert", "pod-template-hash": "ab12"},
          **owned("ReplicaSet", "bert-predictor-ab12")}, "InferenceService", "bert"),
        ({"labels": {"model": "gemma2-2b", "app.kubernetes.io/managed-by": "kubeai"}}, "Model", "gemma2-2b"),
        ({"labels": {"model": "f150"}, **owned("StatefulSet", "cars")}, "StatefulSet", "cars"),
        ({"labels": {"training.kubeflow.org/job-name": "mnist"}, **owned("PyTorchJob", "mnist", "kubeflow.org/v1")},
         "PyTorchJob", "mnist"),
        ({"labels": {"training.kubeflow.org/job-name": "hvd"}, **owned("Job", "hvd-launcher", "batch/v1")},
         "MPIJob", "hvd"),
        ({"labels": {"training.kubeflow.org/job-name": "odd"}}, "KubeflowJob", "odd"),
    ],
)
def test_kind_and_name(metadata: dict[str, Any], kind: str, name: str) -> None:
    assert workload_of(pod_of(**metadata), CLAIM) == Workload(kind=kind, name=name)


@pytest.mark.parametrize(
    ("pod", "group", "queue"),
    [
        (pod_of(annotations={"pod-group-name": "pg-train"}, labels={"kai.scheduler/queue": "team-a"}),
         "pg-train", "team-a"),
        (pod_of(annotations={"scheduling.k8s.io/group-name": "podgroup-1"}), "podgroup-1", ""),
        (pod_of(labels={"scheduling.volcano.sh/group-name": "podgroup-2"}), "podgroup-2", ""),
        (pod_of(labels={"scheduling.x-k8s.io/pod-group": "co"}), "co", ""),
        (pod_of({"workloadRef": {"name": "gang", "podGroup": "workers"}}), "gang/workers", ""),
        (pod_of(labels={"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/pod-group-name": "g"}), "g", "gpus"),
    ],
)
def test_gang_and_queue(pod: Pod, group: str, queue: str) -> None:
    assert workload_of(pod, CLAIM) == Workload(kind="Pod", name="p-0", group=group, queue=queue)


def test_without_a_pod_the_claims_own_metadata_tells() -> None:
    made = msgspec.convert({"metadata": {"name": "c", **owned("Pod", "train-0", "v1")}}, ResourceClaim)
    labelled = msgspec.convert(
        {"metadata": {"name": "c", "labels": {"ray.io/cluster": "rc", "kueue.x-k8s.io/queue-name": "q"}}}, ResourceClaim
    )
    assert workload_of(None, made) == Workload(kind="Pod", name="train-0")
    assert workload_of(None, labelled) == Workload(kind="RayCluster", name="rc", queue="q")
    assert workload_of(None, CLAIM) == Workload()
