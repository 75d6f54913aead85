"""Whose claim is it: which Job, Deployment, RayJob or service stands behind a claim, in which gang and queue?

Only metadata of the pod and of the claim is read, so none of these kinds needs to be installed or readable. One row a
kind, outermost first: what a user made, rather than what a controller made of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from claimscope.claims.model import Workload
from claimscope.kube.objects import (
    OwnerReference,
    Pod,
    ResourceClaim,
    WorkloadAnnotations,
    WorkloadLabels,
    unix_seconds,
)

_NO_LABELS: Final = WorkloadLabels()
_NO_ANNOTATIONS: Final = WorkloadAnnotations()
_CRON_RUN: Final = re.compile(r"^(?P<name>.+)-(?P<minute>\d{8,9})$")
_CRON_LATENESS_SECONDS: Final = 7 * 86400  # between the planned minute and the pod: retries, queues


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The metadata that is looked at."""

    labels: WorkloadLabels
    owner: OwnerReference | None  # the managing one
    created_wall: float | None


Found = tuple[str, str] | None  # kind and name
Rule = Callable[[Evidence], Found]


def _inference_service(evidence: Evidence) -> Found:
    # KServe constants.InferenceServicePodLabelKey: on every predictor, transformer and explainer pod.
    name = evidence.labels.inference_service
    return ("InferenceService", name) if name else None


def _kubeai_model(evidence: Evidence) -> Found:
    # KubeAI engine pods: label `model`, managed-by kubeai. `model` alone is too common a word to rely on.
    labels = evidence.labels
    if labels.kubeai_model and "kubeai" in (labels.managed_by, labels.app_name):
        return "Model", labels.kubeai_model
    return None


def _ray_origin(evidence: Evidence) -> Found:
    # KubeRay utils.RayOriginatedFromCRDLabelKey and ...CRNameLabelKey: the RayJob or RayService that made the cluster.
    labels = evidence.labels
    if labels.ray_origin_kind and labels.ray_origin_name:
        return labels.ray_origin_kind, labels.ray_origin_name
    return None


def _ray_cluster(evidence: Evidence) -> Found:
    # KubeRay utils.RayClusterLabelKey: a cluster that stands for itself.
    name = evidence.labels.ray_cluster
    return ("RayCluster", name) if name else None


def _leader_worker_set(evidence: Evidence) -> Found:
    # LWS SetNameLabelKey; leaders and workers are pods of StatefulSets otherwise.
    name = evidence.labels.leader_worker_set
    return ("LeaderWorkerSet", name) if name else None


def _kubeflow_job(evidence: Evidence) -> Found:
    # Training operator JobNameLabel; its pods are owned by the PyTorchJob, TFJob, ... itself. Only mpi-operator v2
    # puts a batch Job (the launcher) between.
    name, owner = evidence.labels.kubeflow_job_name, evidence.owner
    if not name:
        return None
    if owner is not None and owner.api_version.startswith("kubeflow.org/"):
        return owner.kind, name
    return ("MPIJob" if owner is not None and owner.kind == "Job" else "KubeflowJob"), name


def _jobset(evidence: Evidence) -> Found:
    # JobSet JobSetNameKey, on the pods of all its Jobs.
    name = evidence.labels.jobset_name
    return ("JobSet", name) if name else None


def _deployment(evidence: Evidence) -> Found:
    # deployment/sync.go: the ReplicaSet is called <deployment>-<pod-template-hash>.
    owner, template = evidence.owner, evidence.labels.pod_template_hash
    if owner is None or owner.kind != "ReplicaSet":
        return None
    if template and owner.name.endswith(f"-{template}"):
        return "Deployment", owner.name[: -len(template) - 1]
    return "ReplicaSet", owner.name


def _job(evidence: Evidence) -> Found:
    labels, owner = evidence.labels, evidence.owner
    name = owner.name if owner is not None and owner.kind == "Job" else labels.job_name or labels.old_job_name
    if not name:
        return None
    # cronjob/utils.go getJobName: <cronjob>-<planned minute since 1970>. Believed only if the pod is not older than
    # that minute and not much younger, since people end names in eight digits of a date.
    run = _CRON_RUN.match(name)
    if run is not None and evidence.created_wall is not None:
        late = evidence.created_wall - int(run["minute"]) * 60
        if -60 <= late <= _CRON_LATENESS_SECONDS:
            return "CronJob", run["name"]
    return "Job", name


def _owner(evidence: Evidence) -> Found:
    # StatefulSet, DaemonSet, and whatever manages pods itself.
    owner = evidence.owner
    return (owner.kind, owner.name) if owner is not None and owner.kind else None


RULES: Final[tuple[Rule, ...]] = (
    _inference_service,
    _kubeai_model,
    _ray_origin,
    _ray_cluster,
    _leader_worker_set,
    _kubeflow_job,
    _jobset,
    _deployment,
    _job,
    _owner,
)


def workload_of(pod: Pod | None, claim: ResourceClaim) -> Workload:
    """What stands behind a claim: by its pod where one is known, else by the claim's own labels and owner."""
    if pod is None:
        return _of_claim(claim)
    labels = pod.metadata.labels or _NO_LABELS
    evidence = Evidence(
        labels=labels,
        owner=_manager(pod.metadata.owner_references),
        created_wall=unix_seconds(pod.metadata.creation_timestamp),
    )
    kind, name = _first(evidence) or ("Pod", pod.metadata.name)
    return Workload(kind=kind, name=name, group=_group(pod, labels), queue=_queue(labels))


def _of_claim(claim: ResourceClaim) -> Workload:
    labels = claim.metadata.labels or _NO_LABELS
    evidence = Evidence(
        labels=labels,
        owner=_manager(claim.metadata.owner_references),
        created_wall=unix_seconds(claim.metadata.creation_timestamp),
    )
    kind, name = _first(evidence) or ("", "")
    return Workload(kind=kind, name=name, group=_label_group(labels), queue=_queue(labels))


def _first(evidence: Evidence) -> Found:
    return next((found for rule in RULES if (found := rule(evidence)) is not None), None)


def _manager(owners: Iterable[OwnerReference] | None) -> OwnerReference | None:
    found = list(owners or ())
    return next((owner for owner in found if owner.controller), found[0] if len(found) == 1 else None)


def _group(pod: Pod, labels: WorkloadLabels) -> str:
    annotations = pod.metadata.annotations or _NO_ANNOTATIONS
    upstream = pod.spec.workload_ref  # KEP-4671: a pod group of a Workload
    return (
        annotations.kai_pod_group  # KAI scheduler, by its pod grouper
        or annotations.volcano_pod_group
        or (f"{upstream.name}/{upstream.pod_group}".strip("/") if upstream is not None else "")
        or _label_group(labels)
    )


def _label_group(labels: WorkloadLabels) -> str:
    # scheduler-plugins' coscheduling, Volcano, Kueue's groups of plain pods.
    return labels.scheduler_pod_group or labels.volcano_pod_group or labels.kueue_pod_group or ""


def _queue(labels: WorkloadLabels) -> str:
    return labels.kueue_queue or labels.kai_queue or ""
