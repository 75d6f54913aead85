"""What a node's agent serves while all is well: the real process on each simulated node."""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from agent_process import Agent, Scrape, claimscope, until

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
GPUS = {"h100x8": 8, "a100x8-mig": 8, "b200x8": 8, "l40sx4": 4}


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory, cc: str) -> Iterator[dict[str, Agent]]:
    """An agent for each profile; they only get asked."""
    directory = tmp_path_factory.mktemp("agents")
    with contextlib.ExitStack() as stack:
        started = {
            name: stack.enter_context(Agent(directory / name, "--simulate", name, "--log-format", "text"))
            for name in GPUS
        }
        with ThreadPoolExecutor(len(started)) as pool:
            list(pool.map(_settled, started.values()))
        yield started


def _settled(agent: Agent) -> None:
    """Until every GPU is up and claims have accounts that energy was given to."""
    agent.wait_served()
    agent.until(
        lambda scrape: all(sample.value == 1 for sample in scrape.find("gpu_up"))
        and any(sample.value > 0 for sample in scrape.find("dra_claim_gpu_energy_joules_total"))
    )


@pytest.fixture
def agent(agents: dict[str, Agent]) -> Agent:
    """The node with eight H100."""
    return agents["h100x8"]


@pytest.mark.parametrize("profile", GPUS)
def test_promtool_has_no_complaint(agents: dict[str, Agent], profile: str, promtool: str) -> None:
    body = agents[profile].get("/metrics").body
    done = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("profile", GPUS)
def test_both_formats_say_the_same_and_nothing_twice(agents: dict[str, Agent], profile: str) -> None:
    plain = agents[profile].get("/metrics")
    openmetrics = agents[profile].get("/metrics", Accept="application/openmetrics-text;version=1.0.0")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert openmetrics.headers["content-type"] == OPENMETRICS
    assert openmetrics.text.endswith("\n# EOF\n")
    shown = []
    for families in (list(parse_text(plain.text)), list(parse_openmetrics(openmetrics.text))):  # type: ignore[no-untyped-call]
        names = [family.name for family in families]
        assert len(names) == len(set(names))
        series = [
            (sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples
            if not sample.name.endswith("_created")
        ]
        assert len(series) == len(set(series))
        shown.append({name for name, _ in series})
    assert shown[0] == shown[1]


@pytest.mark.parametrize("profile", GPUS)
def test_every_gpu_is_up_with_figures_and_holders(agents: dict[str, Agent], profile: str) -> None:
    scrape = agents[profile].scrape()
    gpus = {sample.labels["uuid"] for sample in scrape.find("gpu_up") if sample.labels["uuid"].startswith("GPU-")}
    assert len(gpus) == GPUS[profile]
    assert {sample.value for sample in scrape.find("gpu_up")} == {1.0}
    assert set(scrape.by("uuid", "gpu_power_watts")) >= gpus
    assert set(scrape.by("uuid", "gpu_energy_joules_total")) >= gpus
    assert set(scrape.by("source", "gpu_allocation_info")) == {"claim", "pod"}
    assert scrape.value("claimscope_agent_sampler_up") == 1
    assert scrape.value("claimscope_agent_nvml_up") == 1
    assert [row.value for row in scrape.find("claimscope_agent_sampler_restarts_total")] == [0, 0, 0, 0]
    assert scrape.find("claimscope_agent_attribution_unresolved_devices") == []


def test_what_the_mig_accounts_cannot_measure_is_said(agents: dict[str, Agent]) -> None:
    scrape = agents["a100x8-mig"].scrape()
    unmeasurable = scrape.value("claimscope_agent_unmeasurable_devices", reason="busy_time")
    assert unmeasurable is not None
    assert unmeasurable >= 2  # an A100 has no utilization of its MIG devices: notebook and embedder hold one each
    held = {sample.labels["uuid"] for sample in scrape.find("gpu_allocation_info")}
    mig = {uuid for uuid in held if uuid.startswith("MIG-")}
    assert mig
    assert mig.isdisjoint(scrape.by("uuid", "dra_claim_gpu_busy_seconds_total", engine="gpu"))
    assert mig & set(scrape.by("uuid", "dra_claim_gpu_energy_joules_total"))


CONSERVED: tuple[tuple[str, dict[str, str]], ...] = (
    ("energy_joules_total", {}),
    ("busy_seconds_total", {"engine": "gpu"}),
    ("busy_seconds_total", {"engine": "memory"}),
)


def _sums(scrape: Scrape, stem: str, labels: dict[str, str]) -> dict[str, tuple[float, float]]:
    """GPU -> (its own total, its accounts and what is unattributed). MIG devices count to their GPU."""
    parent = {
        sample.labels["uuid"]: sample.labels["parent_uuid"] or sample.labels["uuid"]
        for sample in scrape.find("gpu_info")
    }
    sums = {uuid: (total, 0.0) for uuid, total in scrape.by("uuid", f"gpu_{stem}", **labels).items()}
    for prefix in ("dra_claim_gpu_", "pod_gpu_", "gpu_unattributed_"):
        for uuid, part in scrape.by("uuid", prefix + stem, **labels).items():
            total, handed_out = sums[parent[uuid]]
            sums[parent[uuid]] = (total, handed_out + part)
    return sums


@pytest.mark.parametrize(("profile", "rows"), [("h100x8", CONSERVED), ("a100x8-mig", CONSERVED[:1])])
def test_holders_and_the_rest_add_up_to_the_device(
    agents: dict[str, Agent], profile: str, rows: tuple[tuple[str, dict[str, str]], ...]
) -> None:
    """What the device counts between two moments, holders and the rest have between them, to the last joule.

    A driver's counter is older than the agent, so the device is ahead by what it showed first; and accounts may wait
    for the next poll, always where polls and windows keep such a step. So the distance to what the device shows, or
    showed just before, is the same again and again, while both grow.
    """
    agent = agents[profile]
    seen: dict[tuple[int, str], dict[float, float]] = {}  # device total -> most handed out while it was shown

    def look() -> bool:
        scrape = agent.scrape()
        for row, (stem, labels) in enumerate(rows):
            for uuid, (total, handed_out) in _sums(scrape, stem, labels).items():
                assert handed_out <= total * (1 + 1e-9), (stem, uuid)
                moments = seen.setdefault((row, uuid), {})
                moments[total] = max(moments.get(total, 0.0), handed_out)
        return all(_conserved(moments) for moments in seen.values())

    until(look, 12.0, lambda: str({key: moments for key, moments in seen.items() if not _conserved(moments)}))
    assert len(seen) == 8 * len(rows)


def _conserved(moments: dict[float, float]) -> bool:
    """Whether the smallest distance was there at three different totals; an idle engine's total stays 0."""
    if set(moments) == {0.0}:
        return moments == {0.0: 0.0}
    totals, handed_out = list(moments), list(moments.values())
    for behind in (0, 1):
        distances = [total - part for total, part in zip(totals, handed_out[behind:], strict=False)]
        if sum(distance - min(distances) <= 1e-6 * totals[-1] for distance in distances) >= 3:
            return True
    return False


def test_an_observer_is_never_a_holder(agent: Agent) -> None:
    """The monitoring pod of the simulated node looks at GPUs 0 and 1 by admin access."""
    scrape = agent.scrape()
    names = {sample.name for sample in scrape.samples if sample.labels.get("namespace") == "gpu-monitoring"}
    assert names == set()
    (uuid,) = {sample.labels["uuid"] for sample in scrape.find("gpu_up", gpu="1")}
    assert {sample.labels["pod"] for sample in scrape.find("gpu_allocation_info", uuid=uuid)} == {"chat-a", "chat-b"}


def test_holders_of_every_kind_have_accounts(agent: Agent) -> None:
    scrape = agent.scrape()
    allocated = scrape.by("resourceclaim", "dra_claim_gpu_allocated_seconds_total")
    assert {"chat-gpu", "forgotten-gpu"} <= set(allocated)
    pods = {
        (sample.labels["pod"], sample.labels["attribution"]): sample.value
        for sample in scrape.find("pod_gpu_allocated_seconds_total")
    }
    assert set(pods) == {("notebook-0", "share"), ("notebook-1", "share"), ("render-farm", "exclusive")}
    halves = pods["notebook-0", "share"] + pods["notebook-1", "share"]
    assert halves == pytest.approx(pods["render-farm", "exclusive"], rel=1e-6)


def test_gzip(agent: Agent) -> None:
    answer = agent.get("/metrics", Accept_Encoding="gzip")
    assert answer.headers["content-encoding"] == "gzip"
    body = gzip.decompress(answer.body)
    assert len(answer.body) < len(body) / 5
    assert len(Scrape(body.decode()).find("gpu_up")) == 8


def test_probes_and_page(agent: Agent) -> None:
    assert (agent.get("/livez").status, agent.get("/livez").body) == (200, b"ok\n")
    ready = agent.get("/readyz")
    assert ready.status == 200
    assert ready.text.startswith("[+] sampler: newest window is ")
    assert ready.text.endswith("\nready\n")
    assert "degraded" not in ready.text
    page = agent.get("/")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "NVIDIA H100 80GB HBM3" in page.text
    assert "chat-gpu" in page.text
    assert agent.get("/nothing").status == 404


def test_snapshot(agent: Agent) -> None:
    document = json.loads(agent.get("/api/v1/snapshot").body)
    assert document["node"] == "node-a"
    assert document["error"] is None
    assert [device["gpu"] for device in document["devices"]] == list(range(8))
    assert all(device["up"] and device["readings"] for device in document["devices"])
    assert {"chat-gpu", "forgotten-gpu"} <= {hold["holder"]["name"] for hold in document["holds"]}


def test_a_port_that_is_taken_is_one_line(agent: Agent) -> None:
    address = agent.url.removeprefix("http://")
    done = claimscope(
        "agent", "--web-listen-address", address, "--nvml-library", "/nonexistent.so", "--state-file", "",
        "--control-socket", "", "--attribution", "off",
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"claimscope: cannot listen on {address}: ")
    assert len(done.stderr.splitlines()) == 1
