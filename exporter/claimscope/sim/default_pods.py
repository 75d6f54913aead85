"""Which pods does a simulated node have where the scenario names none?"""

from __future__ import annotations

from claimscope.sim.profiles import Profile
from claimscope.sim.scenario import ClaimPlan, PodPlan


def default_pods(profile: Profile) -> tuple[PodPlan, ...]:
    """Claims that come and go, shared ones, MIG, time slicing and the device plugin, as far as the profile has room."""
    if profile.mig_layout:
        return (
            PodPlan(
                namespace="ml-research",
                name="notebook",
                workload="data_starved",
                claims=(ClaimPlan(name="notebook-slice", devices=("mig:0/0",)),),
            ),
            PodPlan(
                namespace="serving",
                name="small-model",
                workload="inference",
                start=10,
                duration=70,
                period=90,
                claims=(ClaimPlan(name="small-model-slice", devices=("mig:0/1",)),),
            ),
            PodPlan(
                namespace="serving",
                name="embedder",
                workload="inference",
                plugin={"nvidia.com/mig-2g.10gb": ("mig:1/0",)},
            ),
            PodPlan(
                namespace="ci",
                name="unit-tests",
                workload="training",
                start=5,
                duration=40,
                period=60,
                claims=(ClaimPlan(name="unit-tests-gpu", devices=("mig:1/2",)),),
            ),
            *_whole_gpu_pods(2, 6),
        )
    return _whole_gpu_pods(0, profile.gpu_count)


def _whole_gpu_pods(first: int, count: int) -> tuple[PodPlan, ...]:
    def gpu(offset: int) -> str:
        return f"gpu:{first + offset}"

    pods = [
        # A job on one GPU that is started again and again, each time with a claim of its own.
        PodPlan(
            namespace="ml-research",
            name="train-llm",
            workload="training",
            start=2,
            duration=90,
            period=120,
            claims=(ClaimPlan(name="train-llm-gpu", devices=(gpu(0),)),),
        ),
        # Two pods share one claim.
        *(
            PodPlan(
                namespace="serving",
                name=f"chat-{replica}",
                workload="inference",
                claims=(ClaimPlan(name="chat-gpu", devices=(gpu(1),), shared=True),),
            )
            for replica in "ab"
        ),
        # The device plugin hands out a whole GPU.
        PodPlan(
            namespace="legacy",
            name="render-farm",
            workload="data_starved",
            plugin={"nvidia.com/gpu": (gpu(2),)},
        ),
        # And two replicas of one GPU by time slicing.
        *(
            PodPlan(
                namespace="legacy",
                name=f"notebook-{replica}",
                workload="inference",
                plugin={"nvidia.com/gpu.shared": (f"{gpu(3)}::{replica}",)},
            )
            for replica in (0, 1)
        ),
    ]
    # A monitoring tool looks at two GPUs by admin access: it holds neither.
    pods.append(
        PodPlan(
            namespace="gpu-monitoring",
            name="gpu-observer",
            workload="idle",
            claims=(ClaimPlan(name="observe", devices=(gpu(0), gpu(1)), admin_access=True),),
        )
    )
    if count >= 6:
        pods.append(
            # One claim with two GPUs.
            PodPlan(
                namespace="ml-research",
                name="finetune",
                workload="training",
                start=15,
                duration=60,
                period=80,
                claims=(ClaimPlan(name="finetune-gpus", devices=(gpu(4), gpu(5))),),
            )
        )
    if count >= 8:
        pods.append(
            # A claim that is held and hardly used.
            PodPlan(
                namespace="ml-research",
                name="forgotten-notebook",
                workload="idle",
                claims=(ClaimPlan(name="forgotten-gpu", devices=(gpu(6),)),),
            )
        )
    return tuple(pods)
