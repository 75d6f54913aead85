import json
from pathlib import Path

from claimscope.export import docs
from claimscope.export.collect import Collector
from claimscope.export.otlp import document as otlp
from claimscope.health import document as health
from claimscope.metrics import cluster, controller
from claimscope.metrics.tables import QUANTITIES as TABLES
from exposition import QUANTITIES

DOCS = Path(__file__).parent.parent / "docs"
FAMILIES = Collector(QUANTITIES).families


def test_a_row_says_everything() -> None:
    lines = docs.markdown(FAMILIES, QUANTITIES).splitlines()

    assert (
        "| `gpu_utilization_ratio` | gauge | ratio | `uuid`, `gpu`, `engine` | How busy an engine is. "
        "| `engine=gpu: nvmlDeviceGetUtilizationRates` | tick | `hw.gpu.utilization` | `DCGM_FI_DEV_GPU_UTIL` |"
    ) in lines


def test_every_family_is_documented_once_under_its_group() -> None:
    lines = docs.markdown(FAMILIES, QUANTITIES).splitlines()

    named = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert sorted(named) == sorted(FAMILIES)
    assert [line for line in lines if line.startswith("## ")] == [
        "## Devices",
        "## Health",
        "## Who holds what",
        "## Accounts of ResourceClaims",
        "## Accounts of device-plugin pods",
        "## Unattributed",
        "## The agent itself",
    ]


def test_json_says_the_same() -> None:
    entries = {entry["name"]: entry for entry in json.loads(docs.json(FAMILIES, QUANTITIES))}

    assert entries["dra_claim_gpu_energy_joules_total"] == {
        "group": "Accounts of ResourceClaims",
        "name": "dra_claim_gpu_energy_joules_total",
        "type": "counter",
        "unit": "joules",
        "ucum": "J",
        "labels": ["namespace", "resourceclaim", "claim_uid", "uuid", "attribution"],
        "help": "Energy used. The part of a ResourceClaim.",
        "since": "0.1.0",
        "sources": ["NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION"],
        "tiers": ["tick"],
        "scopes": ["gpu"],
        "opt_in": [],
        "otel": ["dra.claim.gpu_energy"],
        "dcgm": [],
    }


def test_families_of_the_controller_stand_in_groups_of_their_own() -> None:
    groups = {entry["name"]: entry["group"] for entry in json.loads(docs.json(docs.all_families(), TABLES))}

    assert {groups[name] for name in cluster.FAMILIES} == {
        "Claims",
        "Claims that wait",
        "Durations and outcomes",
        "Capacity, taints and quota",
        "From device plugin to DRA",
    }
    assert {groups[name] for name in controller.FAMILIES} == {"The controller itself"}
    assert groups["claimscope_agent_series"] == "The agent itself"


def test_page_under_docs_is_current() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")

    assert page == docs.markdown(docs.all_families(), TABLES), "run `make docs`"


def test_health_page_under_docs_is_current() -> None:
    assert (DOCS / "health.md").read_text(encoding="utf-8") == health.document(), "run `make docs`"


def test_otlp_page_under_docs_is_current() -> None:
    page = (DOCS / "otlp.md").read_text(encoding="utf-8")

    assert page == otlp.markdown(docs.all_families(), TABLES), "run `make docs`"
