"""What does the API server say, in types that name only the fields that are read?

Go writes absent lists and maps as null, so each of them may be None. Unknown fields are skipped and enumerations stay
text: a newer API server must not stop an older reader. Everything has a default, since a status may not be there yet.
Types without cyclic references carry gc=False: lists of 100,000 claims are decoded without waking the collector.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final

import msgspec

AttributeValue = str | int | bool

RESOURCE_GROUP: Final = "resource.k8s.io"


@lru_cache(maxsize=16_384)  # stamps are whole seconds: many objects have the same, and then share the number too
def unix_seconds(stamp: str | None) -> float | None:
    """A metav1.Time or MicroTime as Unix seconds; None where it is absent or no RFC 3339 time."""
    if not stamp:
        return None
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None


class _Struct(msgspec.Struct, frozen=True, rename="camel", gc=False):
    pass


# --- lists, watches, refusals, discovery ---


class ListMeta(_Struct, frozen=True, rename="camel"):
    """metadata of a list."""

    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class RawList(msgspec.Struct, frozen=True):
    """A list of any kind, items still undecoded."""

    metadata: ListMeta = ListMeta()
    items: list[msgspec.Raw] | None = None


class WatchLine(msgspec.Struct, frozen=True):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


class VersionedMeta(_Struct, frozen=True, rename="camel"):
    """The part of metadata that every event and bookmark is read for."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    annotations: dict[str, str] | None = None  # k8s.io/initial-events-end on the bookmark that ends a streamed list


class Versioned(msgspec.Struct, frozen=True):
    """Any object, for its metadata alone."""

    metadata: VersionedMeta = VersionedMeta()


class Status(msgspec.Struct, frozen=True):
    """metav1.Status: the body of a refusal and the object of an ERROR line."""

    code: int = 0
    reason: str = ""
    message: str = ""


class GroupVersion(msgspec.Struct, frozen=True):
    """One served version of an API group."""

    version: str


class ApiGroup(msgspec.Struct, frozen=True):
    """The answer of /apis/<group>."""

    versions: list[GroupVersion] | None = None


class ApiResource(msgspec.Struct, frozen=True):
    """One kind in a served version."""

    name: str


class ApiResourceList(msgspec.Struct, frozen=True):
    """The answer of /apis/<group>/<version>."""

    resources: list[ApiResource] | None = None


class VersionInfo(_Struct, frozen=True, rename="camel"):
    """The answer of /version."""

    git_version: str = ""


# --- metadata ---


class OwnerReference(_Struct, frozen=True, rename="camel"):
    """One entry of metadata.ownerReferences."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class Meta(_Struct, frozen=True, rename="camel"):
    """metadata of an object."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    owner_references: Sequence[OwnerReference] | None = None


class Condition(_Struct, frozen=True, rename="camel"):
    """A metav1.Condition, PodCondition or NodeCondition."""

    type: str
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None
    observed_generation: int = 0  # 0: not said


# --- ResourceSlice ---


class Attribute(_Struct, frozen=True):
    """One attribute: one of the members is set (lists, alpha in 1.36, are not read)."""

    string: str | None = None
    version: str | None = None
    int_: int | None = msgspec.field(name="int", default=None)
    bool_: bool | None = msgspec.field(name="bool", default=None)

    def value(self) -> AttributeValue | None:
        """The value, or None where it has a shape that is not read."""
        for value in (self.string, self.version, self.int_, self.bool_):
            if value is not None:
                return value
        return None


class CapacityRange(_Struct, frozen=True, rename="camel"):
    """validRange of a request policy; quantities as text."""

    min: str | None = None
    max: str | None = None
    step: str | None = None


class RequestPolicy(_Struct, frozen=True, rename="camel"):
    """How much of a capacity one claim may take: what it gets unasked, and what it may ask for."""

    default: str | None = None
    valid_values: list[str] | None = None
    valid_range: CapacityRange | None = None


class Capacity(_Struct, frozen=True, rename="camel"):
    """One capacity of a device."""

    value: str = ""
    request_policy: RequestPolicy | None = None


class Counter(_Struct, frozen=True):
    """One counter: a quantity as text."""

    value: str = ""


class CounterSet(_Struct, frozen=True):
    """A named set of counters that the devices of a pool draw from."""

    name: str
    counters: dict[str, Counter] | None = None


class CounterConsumption(_Struct, frozen=True, rename="camel"):
    """What a device takes from a counter set while it is allocated."""

    counter_set: str
    counters: dict[str, Counter] | None = None


class Taint(_Struct, frozen=True, rename="camel"):
    """A device taint, of a slice or of a rule."""

    key: str
    value: str = ""
    effect: str = ""  # None, NoSchedule, NoExecute; any other counts as None (API resource/v1 types.go)
    time_added: str | None = None


class SelectorRequirement(_Struct, frozen=True, rename="camel"):
    """One term of a node selector."""

    key: str
    operator: str
    values: list[str] | None = None


class NodeSelectorTerm(_Struct, frozen=True, rename="camel"):
    """Requirements that must all hold."""

    match_expressions: list[SelectorRequirement] | None = None
    match_fields: list[SelectorRequirement] | None = None


class NodeSelector(_Struct, frozen=True, rename="camel"):
    """Terms of which one must hold."""

    node_selector_terms: list[NodeSelectorTerm] | None = None


class BasicDevice(_Struct, frozen=True):
    """`basic` of a v1beta1 device."""

    attributes: dict[str, Attribute] | None = None


class DeviceSpec(_Struct, frozen=True, rename="camel"):
    """One device of a slice, in the shapes of v1, v1beta2 (flat) and v1beta1 (basic)."""

    name: str
    attributes: dict[str, Attribute] | None = None
    basic: BasicDevice | None = None
    capacity: dict[str, Capacity] | None = None
    consumes_counters: list[CounterConsumption] | None = None
    node_name: str | None = None
    node_selector: NodeSelector | None = None
    all_nodes: bool | None = None
    taints: list[Taint] | None = None
    binding_conditions: list[str] | None = None
    allow_multiple_allocations: bool | None = None


class PoolSpec(_Struct, frozen=True, rename="camel"):
    """spec.pool of a slice."""

    name: str
    generation: int = 0
    resource_slice_count: int = 1


class SliceSpec(_Struct, frozen=True, rename="camel"):
    """spec of a slice."""

    driver: str
    pool: PoolSpec
    node_name: str | None = None
    node_selector: NodeSelector | None = None
    all_nodes: bool | None = None
    per_device_node_selection: bool | None = None
    devices: list[DeviceSpec] | None = None
    shared_counters: list[CounterSet] | None = None


class ResourceSlice(_Struct, frozen=True):
    """A ResourceSlice."""

    metadata: Meta
    spec: SliceSpec


# --- DeviceClass, ResourceClaim, ResourceClaimTemplate ---


class CelSelector(_Struct, frozen=True):
    """A CEL expression over `device`."""

    expression: str = ""


class DeviceSelector(_Struct, frozen=True):
    """One selector; only CEL exists."""

    cel: CelSelector | None = None


class DeviceClassSpec(_Struct, frozen=True, rename="camel"):
    """spec of a class."""

    selectors: list[DeviceSelector] | None = None
    extended_resource_name: str | None = None


class DeviceClass(_Struct, frozen=True):
    """A DeviceClass."""

    metadata: Meta
    spec: DeviceClassSpec = DeviceClassSpec()


class Toleration(_Struct, frozen=True, rename="camel"):
    """A device toleration."""

    key: str = ""
    operator: str = ""  # Exists, Equal; empty: Equal
    value: str = ""
    effect: str = ""  # empty: every effect
    toleration_seconds: int | None = None  # of NoExecute alone; None: for ever


class CapacityRequirements(_Struct, frozen=True):
    """How much of each capacity a request wants; quantities as text."""

    requests: dict[str, str] | None = None


class DeviceRequest(_Struct, frozen=True, rename="camel"):
    """`exactly`, or one entry of `firstAvailable` (which alone has a name and never adminAccess)."""

    name: str = ""
    device_class_name: str = ""
    selectors: list[DeviceSelector] | None = None
    allocation_mode: str = ""  # ExactCount or All; empty: ExactCount
    count: int | None = None  # None: 1
    admin_access: bool | None = None
    tolerations: list[Toleration] | None = None
    capacity: CapacityRequirements | None = None


class ClaimRequest(_Struct, frozen=True, rename="camel"):
    """One entry of spec.devices.requests."""

    name: str
    exactly: DeviceRequest | None = None
    first_available: list[DeviceRequest] | None = None


class Constraint(_Struct, frozen=True, rename="camel"):
    """What the devices of several requests must have in common, or apart."""

    requests: list[str] | None = None  # None: all requests
    match_attribute: str | None = None
    distinct_attribute: str | None = None


class ClaimDevices(_Struct, frozen=True):
    """spec.devices of a claim."""

    requests: list[ClaimRequest] | None = None
    constraints: list[Constraint] | None = None


class ClaimSpec(_Struct, frozen=True):
    """spec of a claim."""

    devices: ClaimDevices = ClaimDevices()


class DeviceResult(_Struct, frozen=True, rename="camel"):
    """status.allocation.devices.results[] of a claim; the same in all versions."""

    request: str  # "main", or "main/sub" where firstAvailable chose
    driver: str
    pool: str
    device: str
    admin_access: bool | None = None
    share_id: str | None = msgspec.field(name="shareID", default=None)
    consumed_capacity: dict[str, str] | None = None
    tolerations: list[Toleration] | None = None
    binding_conditions: list[str] | None = None
    binding_failure_conditions: list[str] | None = None


class DeviceAllocation(_Struct, frozen=True):
    """status.allocation.devices of a claim."""

    results: Sequence[DeviceResult] | None = None


class Allocation(_Struct, frozen=True, rename="camel"):
    """status.allocation of a claim."""

    devices: DeviceAllocation = DeviceAllocation()
    allocation_timestamp: str | None = None
    node_selector: NodeSelector | None = None


class ConsumerReference(_Struct, frozen=True, rename="camel"):
    """One entry of status.reservedFor."""

    resource: str = ""
    name: str = ""
    uid: str = ""
    api_group: str = ""


class AllocatedDeviceStatus(_Struct, frozen=True):
    """One entry of status.devices, written by the driver."""

    driver: str = ""
    pool: str = ""
    device: str = ""
    conditions: list[Condition] | None = None


class ClaimStatus(_Struct, frozen=True, rename="camel"):
    """status of a claim."""

    allocation: Allocation | None = None
    reserved_for: Sequence[ConsumerReference] | None = None
    devices: list[AllocatedDeviceStatus] | None = None


class ClaimAnnotations(_Struct, frozen=True):
    """The annotations of a claim that are read; the others (a whole manifest, often) are not kept."""

    pod_claim_name: str | None = msgspec.field(name="resource.kubernetes.io/pod-claim-name", default=None)
    extended_resource: str | None = msgspec.field(name="resource.kubernetes.io/extended-resource-claim", default=None)


class WorkloadLabels(_Struct, frozen=True):
    """The labels of a pod, claim or template that name what stands behind it."""

    job_name: str | None = msgspec.field(name="batch.kubernetes.io/job-name", default=None)
    old_job_name: str | None = msgspec.field(name="job-name", default=None)
    jobset_name: str | None = msgspec.field(name="jobset.sigs.k8s.io/jobset-name", default=None)
    pod_template_hash: str | None = msgspec.field(name="pod-template-hash", default=None)
    ray_cluster: str | None = msgspec.field(name="ray.io/cluster", default=None)
    ray_node_type: str | None = msgspec.field(name="ray.io/node-type", default=None)
    ray_origin_kind: str | None = msgspec.field(name="ray.io/originated-from-crd", default=None)
    ray_origin_name: str | None = msgspec.field(name="ray.io/originated-from-cr-name", default=None)
    ray_submitter_job: str | None = msgspec.field(name="ray.io/job-submission-id", default=None)
    leader_worker_set: str | None = msgspec.field(name="leaderworkerset.sigs.k8s.io/name", default=None)
    leader_worker_group: str | None = msgspec.field(name="leaderworkerset.sigs.k8s.io/group-index", default=None)
    inference_service: str | None = msgspec.field(name="serving.kserve.io/inferenceservice", default=None)
    kubeai_model: str | None = msgspec.field(name="model", default=None)
    managed_by: str | None = msgspec.field(name="app.kubernetes.io/managed-by", default=None)
    app_name: str | None = msgspec.field(name="app.kubernetes.io/name", default=None)
    kubeflow_job_name: str | None = msgspec.field(name="training.kubeflow.org/job-name", default=None)
    kueue_queue: str | None = msgspec.field(name="kueue.x-k8s.io/queue-name", default=None)
    kueue_pod_group: str | None = msgspec.field(name="kueue.x-k8s.io/pod-group-name", default=None)
    scheduler_pod_group: str | None = msgspec.field(name="scheduling.x-k8s.io/pod-group", default=None)
    volcano_pod_group: str | None = msgspec.field(name="scheduling.volcano.sh/group-name", default=None)
    kai_queue: str | None = msgspec.field(name="kai.scheduler/queue", default=None)


class WorkloadAnnotations(_Struct, frozen=True):
    """The annotations of a pod that name what stands behind it."""

    kai_pod_group: str | None = msgspec.field(name="pod-group-name", default=None)
    volcano_pod_group: str | None = msgspec.field(name="scheduling.k8s.io/group-name", default=None)


class ClaimMeta(Meta, frozen=True, rename="camel"):
    """metadata of a claim."""

    annotations: ClaimAnnotations | None = None
    labels: WorkloadLabels | None = None


class ResourceClaim(_Struct, frozen=True):
    """A ResourceClaim."""

    metadata: ClaimMeta
    spec: ClaimSpec = ClaimSpec()
    status: ClaimStatus = ClaimStatus()


class TemplateSpec(_Struct, frozen=True):
    """spec of a template: the spec of the claims that are made from it."""

    spec: ClaimSpec = ClaimSpec()


class ResourceClaimTemplate(_Struct, frozen=True):
    """A ResourceClaimTemplate."""

    metadata: Meta
    spec: TemplateSpec = TemplateSpec()


# --- Pod ---


class PodResourceClaim(_Struct, frozen=True, rename="camel"):
    """One entry of spec.resourceClaims."""

    name: str
    resource_claim_name: str | None = None
    resource_claim_template_name: str | None = None


class ContainerClaim(_Struct, frozen=True):
    """One entry of resources.claims of a container."""

    name: str
    request: str = ""


class Resources(_Struct, frozen=True):
    """resources of a container."""

    claims: list[ContainerClaim] | None = None
    limits: dict[str, str | int | float] | None = None


class Container(_Struct, frozen=True, rename="camel"):
    """One container."""

    name: str
    resources: Resources | None = None
    restart_policy: str = ""  # of init containers: Always makes a sidecar


class SchedulingGate(_Struct, frozen=True):
    """One gate."""

    name: str = ""


class WorkloadReference(_Struct, frozen=True, rename="camel"):
    """spec.workloadRef (1.35): the Workload and the pod group of gang scheduling."""

    name: str = ""
    pod_group: str = ""


class PodSpec(_Struct, frozen=True, rename="camel"):
    """spec of a pod."""

    node_name: str | None = None
    scheduler_name: str = ""
    resource_claims: list[PodResourceClaim] | None = None
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None
    scheduling_gates: list[SchedulingGate] | None = None
    workload_ref: WorkloadReference | None = None


class Running(_Struct, frozen=True, rename="camel"):
    """state.running."""

    started_at: str | None = None


class Waiting(_Struct, frozen=True):
    """state.waiting."""

    reason: str = ""
    message: str = ""


class Terminated(_Struct, frozen=True, rename="camel"):
    """state.terminated."""

    reason: str = ""
    exit_code: int = 0
    started_at: str | None = None
    finished_at: str | None = None


class ContainerState(_Struct, frozen=True):
    """state of a container: one of the members is set."""

    running: Running | None = None
    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ResourceHealth(_Struct, frozen=True):
    """The health of one allocated device, as the kubelet was told."""

    resource_id: str = msgspec.field(name="resourceID", default="")
    health: str = ""  # Healthy, Unhealthy, Unknown
    message: str = ""


class ResourceStatus(_Struct, frozen=True):
    """One entry of allocatedResourcesStatus; name is claim:<pod's name of the claim>[/<request>] or a resource."""

    name: str = ""
    resources: Sequence[ResourceHealth] | None = None


class ContainerStatus(_Struct, frozen=True, rename="camel"):
    """One entry of containerStatuses."""

    name: str
    state: ContainerState = ContainerState()
    restart_count: int = 0
    allocated_resources_status: Sequence[ResourceStatus] | None = None


class PodClaimStatus(_Struct, frozen=True, rename="camel"):
    """One entry of resourceClaimStatuses: which claim was made from a template."""

    name: str
    resource_claim_name: str | None = None


class RequestMapping(_Struct, frozen=True, rename="camel"):
    """Which container an extended resource's request of the claim is for."""

    container_name: str = ""


class ExtendedClaimStatus(_Struct, frozen=True, rename="camel"):
    """extendedResourceClaimStatus: the claim that the scheduler made for an extended resource."""

    resource_claim_name: str = ""
    request_mappings: Sequence[RequestMapping] | None = None


class PodStatus(_Struct, frozen=True, rename="camel"):
    """status of a pod."""

    phase: str = ""
    reason: str = ""
    conditions: Sequence[Condition] | None = None
    container_statuses: Sequence[ContainerStatus] | None = None
    init_container_statuses: Sequence[ContainerStatus] | None = None
    resource_claim_statuses: Sequence[PodClaimStatus] | None = None
    extended_resource_claim_status: ExtendedClaimStatus | None = None


class PodMeta(Meta, frozen=True, rename="camel"):
    """metadata of a pod."""

    labels: WorkloadLabels | None = None
    annotations: WorkloadAnnotations | None = None


class Pod(_Struct, frozen=True):
    """A pod."""

    metadata: PodMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


# --- the others ---


class RuleSelector(_Struct, frozen=True):
    """deviceSelector of a rule. An empty one selects every device there is; see claims/taints.py for an absent one."""

    driver: str | None = None
    pool: str | None = None
    device: str | None = None
    device_class_name: str | None = msgspec.field(name="deviceClassName", default=None)  # v1alpha3 until 1.34
    selectors: list[msgspec.Raw] | None = None  # likewise


class RuleSpec(_Struct, frozen=True, rename="camel"):
    """spec of a rule."""

    taint: Taint
    device_selector: RuleSelector | None = None


class RuleStatus(_Struct, frozen=True):
    """status of a rule."""

    conditions: list[Condition] | None = None


class LabelledMeta(Meta, frozen=True, rename="camel"):
    """metadata with all its labels and annotations, for the kinds of which there are few."""

    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class DeviceTaintRule(_Struct, frozen=True):
    """A DeviceTaintRule."""

    metadata: LabelledMeta
    spec: RuleSpec
    status: RuleStatus = RuleStatus()


class NodeSpec(_Struct, frozen=True):
    """spec of a node."""

    unschedulable: bool | None = None
    taints: Sequence[Taint] | None = None  # core/v1 Taint has the fields of a device taint


class NodeInfo(_Struct, frozen=True, rename="camel"):
    """status.nodeInfo."""

    kubelet_version: str = ""
    boot_id: str = msgspec.field(name="bootID", default="")


class NodeStatus(_Struct, frozen=True, rename="camel"):
    """status of a node."""

    capacity: dict[str, str] | None = None
    allocatable: dict[str, str] | None = None
    conditions: Sequence[Condition] | None = None
    node_info: NodeInfo = NodeInfo()


class NodeNotes(_Struct, frozen=True):
    """Our own annotations of a node; the others are large and not read."""

    taints: str | None = msgspec.field(name="claimscope.io/node-taints", default=None)
    maintenance: str | None = msgspec.field(name="claimscope.io/maintenance", default=None)
    maintenance_by: str | None = msgspec.field(name="claimscope.io/maintenance-by", default=None)
    maintenance_deadline: str | None = msgspec.field(name="claimscope.io/maintenance-deadline", default=None)
    maintenance_unverified: str | None = msgspec.field(name="claimscope.io/maintenance-unverified", default=None)


class NodeMeta(Meta, frozen=True, rename="camel"):
    """metadata of a node; its labels decide node selectors."""

    labels: dict[str, str] | None = None
    annotations: NodeNotes | None = None


class Node(_Struct, frozen=True):
    """A node."""

    metadata: NodeMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class QuotaStatus(_Struct, frozen=True):
    """status of a ResourceQuota; quantities as text."""

    hard: dict[str, str] | None = None
    used: dict[str, str] | None = None


class ResourceQuota(_Struct, frozen=True):
    """A ResourceQuota."""

    metadata: Meta
    status: QuotaStatus = QuotaStatus()


class LeaseSpec(_Struct, frozen=True, rename="camel"):
    """spec of a Lease; times are MicroTime."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(_Struct, frozen=True):
    """A Lease."""

    metadata: LabelledMeta
    spec: LeaseSpec = LeaseSpec()


class ObjectReference(_Struct, frozen=True):
    """involvedObject of an event."""

    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class EventSeries(_Struct, frozen=True, rename="camel"):
    """series of an event."""

    count: int = 0
    last_observed_time: str | None = None


class Event(_Struct, frozen=True, rename="camel"):
    """A core/v1 Event."""

    metadata: Meta
    involved_object: ObjectReference = ObjectReference()
    reason: str = ""
    message: str = ""
    type: str = ""
    count: int | None = None
    last_timestamp: str | None = None
    event_time: str | None = None
    series: EventSeries | None = None
