"""Does deploy/compose fit together? There is no Docker here: every file is read by whom it is for, as far as that goes.

Prometheus and Alertmanager check their own; the rest is held to the Compose Specification, to each other, and to the
demo that they are around.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from claimscope import demo
from claimscope.cli import cli
from claimscope.sim.demo_files import Agent, prometheus_config

ROOT = Path(__file__).parent.parent
HERE = ROOT / "deploy" / "compose"
SCHEMA = Path(__file__).parent / "crds" / "compose-spec.json"
DOCKERFILE = ROOT / "Dockerfile"


def read(name: str) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    return made


@pytest.fixture(scope="module")
def services() -> Mapping[str, Any]:
    return read("compose.yaml")["services"]  # type: ignore[no-any-return]


def faults(made: Mapping[str, Any]) -> list[str]:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    found = jsonschema.Draft7Validator(schema).iter_errors(made)
    return [f"{'.'.join(map(str, fault.absolute_path))}: {fault.message}" for fault in found]


def mounts(services: Mapping[str, Any]) -> Iterator[tuple[str, Path, str]]:
    """Service, path on this machine, path in the container; without named volumes."""
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                yield name, (HERE / source).resolve(), target


def mounted(services: Mapping[str, Any], service: str, target: str) -> Path:
    """What a service finds at a path."""
    found = [
        source / Path(target).relative_to(place) for name, source, place in mounts(services)
        if name == service and Path(target).is_relative_to(place)
    ]  # fmt: skip
    assert len(found) == 1, f"{service}: nothing is mounted at {target}"
    return found[0]


def flag(service: Mapping[str, Any], name: str) -> str:
    (value,) = [word.split("=", 1)[1] for word in service["command"] if word.startswith(f"{name}=")]
    return str(value)


def test_it_is_a_compose_file() -> None:
    # `name` is newer than this copy of the specification.
    made = read("compose.yaml")
    assert made.pop("name") == "claimscope"
    assert faults(made) == []


def test_the_specification_refuses_what_it_does_not_know() -> None:
    made = read("compose.yaml")
    del made["name"]
    made["services"]["demo"]["comand"] = []
    assert [fault.split(": ")[0] for fault in faults(made)] == ["services.demo"]


def test_every_mounted_path_exists_and_is_read_only(services: Mapping[str, Any]) -> None:
    found = [*mounts(services)]
    assert len(found) == 7
    assert [str(source) for _, source, _ in found if not source.exists()] == []
    written = [
        volume for service in services.values() for volume in service.get("volumes", [])
        if volume.startswith(".") and not volume.endswith(":ro")
    ]  # fmt: skip
    assert written == []


def test_named_volumes_are_declared(services: Mapping[str, Any]) -> None:
    used = {
        volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])
        if not volume.startswith(".")
    }  # fmt: skip
    assert used == {*read("compose.yaml")["volumes"]}


def test_ports_are_open_on_this_machine_alone_and_collide_nowhere(services: Mapping[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []
    hosts = [port.split(":")[1] for port in published]
    assert len(hosts) == len({*hosts})


def test_images_are_pinned(services: Mapping[str, Any]) -> None:
    images = {name: service["image"] for name, service in services.items() if "build" not in service}
    pinned = re.compile(r"docker\.io/[\w/-]+:v?\d+\.\d+\.\d+@sha256:[0-9a-f]{64}")
    assert {name for name, image in images.items() if not pinned.fullmatch(image)} == set()
    assert {*images} == {"prometheus", "alertmanager", "grafana", "collector"}
    dependabot = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text(encoding="utf-8"))["updates"]
    assert ("docker-compose", "/deploy/compose") in {
        (each["package-ecosystem"], each["directory"]) for each in dependabot
    }


def test_nobody_can_log_in_to_grafana(services: Mapping[str, Any]) -> None:
    """Grafana makes a user admin with a known password: neither the form nor the API may take it."""
    settings = services["grafana"]["environment"]
    assert (settings["GF_AUTH_DISABLE_LOGIN_FORM"], settings["GF_AUTH_BASIC_ENABLED"]) == ("true", "false")


def test_services_wait_for_services_that_are_there(services: Mapping[str, Any]) -> None:
    waits = {other for service in services.values() for other in service.get("depends_on", [])}
    assert waits <= {*services}
    assert "healthcheck" in services["demo"]


# --- the demo ---


def test_the_demo_is_built_with_what_it_needs(services: Mapping[str, Any]) -> None:
    build = services["demo"]["build"]
    assert (HERE / build["context"]).resolve() == ROOT
    text = DOCKERFILE.read_text(encoding="utf-8")
    (stage,) = [part for part in text.split("\nFROM ") if part.partition("\n")[0].endswith(f"AS {build['target']}")]
    assert "gcc libc6-dev" in stage  # the simulated library is compiled at its first start
    assert 'ENTRYPOINT ["/opt/claimscope/bin/claimscope"]' in stage


def test_the_demo_can_write_where_it_compiles_and_load_what_it_compiled(services: Mapping[str, Any]) -> None:
    assert services["demo"]["read_only"] is True
    assert services["demo"]["environment"]["XDG_CACHE_HOME"].startswith("/tmp/")
    assert services["demo"]["tmpfs"] == ["/tmp:exec"]  # Docker's are noexec, and no library is loaded from such


def test_the_demos_flags_exist_and_it_listens_for_others(services: Mapping[str, Any]) -> None:
    words = services["demo"]["command"]
    assert words == ["demo", "--listen-host", "0.0.0.0"]
    done = CliRunner().invoke(cli, [*words, "--help"])
    assert done.exit_code == 0, done.output
    refused = CliRunner().invoke(cli, ["demo", "--listen-host", "10.0.0.1"])
    assert (refused.exit_code, "'10.0.0.1' is not one of '127.0.0.1', '0.0.0.0'" in refused.output) == (2, True)


def expected_agents() -> tuple[Agent, ...]:
    """The demo's, where no port is taken: as in a container."""
    ports = iter(port for port in range(demo.AGENT_PORT, demo.AGENT_PORT + 50) if port != demo.CONTROLLER_PORT)
    return tuple(Agent(node=node, profile=of, port=next(ports)) for node, of in demo.nodes_of("h100x8"))


def test_prometheus_asks_as_the_demos_own_would(services: Mapping[str, Any]) -> None:
    asked = read("prometheus.yml")
    (more,) = [job for job in asked["scrape_configs"] if job["job_name"] == "collector"]
    asked["scrape_configs"].remove(more)
    for job in asked["scrape_configs"]:
        assert job.pop("honor_labels") is True
    text = prometheus_config(expected_agents(), demo.CONTROLLER_PORT, "alertmanager:9093")
    assert asked == yaml.safe_load(text.replace("127.0.0.1:", "demo:"))
    published = {port.split(":")[2] for port in services["demo"]["ports"]}
    jobs = [static for job in asked["scrape_configs"] for static in job["static_configs"]]
    assert {target.split(":")[1] for static in jobs for target in static["targets"]} == published


@pytest.mark.timeout(120)  # a first start compiles the simulated library, beside other tests
async def test_others_reach_agents_and_controller_of_the_demo(cc: str) -> None:
    """Another address of this machine stands for another container: who listens on 127.0.0.1 alone does not answer."""
    del cc
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "claimscope", "demo", "--listen-host", "0.0.0.0",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    ports: list[str] = []
    try:
        async with asyncio.timeout(90), aiohttp.ClientSession() as asker:
            while len(ports) < 4:
                line = (await process.stdout.readline()).decode()
                assert line, "the demo ended"
                ports += re.findall(r"^(?:agent|controller)\s+http://127\.0\.0\.1:(\d+)/", line)
            for port in ports:
                async with asker.get(f"http://127.0.0.2:{port}/livez") as reply:
                    assert reply.status == 200
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), 20)


# --- what is around it ---


def test_promtool_takes_what_prometheus_reads(
    promtool: str, tmp_path: Path, services: Mapping[str, Any]
) -> None:
    config = mounted(services, "prometheus", flag(services["prometheus"], "--config.file"))
    (rules,) = read("prometheus.yml")["rule_files"]
    shutil.copy(config, tmp_path / "prometheus.yml")
    shutil.copy(mounted(services, "prometheus", f"/etc/prometheus/{rules}"), tmp_path / rules)
    done = subprocess.run(
        # Two rules may record one name for workloads that exclude each other, which the linter cannot see.
        [promtool, "check", "config", "--lint=none", str(tmp_path / "prometheus.yml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


def test_amtool_takes_what_alertmanager_reads(amtool: str, services: Mapping[str, Any]) -> None:
    config = mounted(services, "alertmanager", flag(services["alertmanager"], "--config.file"))
    done = subprocess.run([amtool, "check-config", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    receivers = yaml.safe_load(config.read_text(encoding="utf-8"))["receivers"]
    assert [receiver for receiver in receivers if [*receiver] != ["name"]] == []  # nobody outside is told anything


def test_grafana_finds_its_data_source_and_the_boards(services: Mapping[str, Any]) -> None:
    folder = "/etc/grafana/provisioning"
    sources = yaml.safe_load(mounted(services, "grafana", f"{folder}/datasources/claimscope.yaml").read_text())
    (source,) = sources["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    assert source["jsonData"]["timeInterval"] == read("prometheus.yml")["global"]["scrape_interval"]
    providers = yaml.safe_load(mounted(services, "grafana", f"{folder}/dashboards/claimscope.yaml").read_text())
    boards = mounted(services, "grafana", providers["providers"][0]["options"]["path"])
    assert boards == ROOT / "dashboards" / "json"
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted(services, "grafana", home).is_file()


def test_the_collector_is_pushed_to_and_asked(services: Mapping[str, Any]) -> None:
    config = yaml.safe_load(mounted(services, "collector", flag(services["collector"], "--config")).read_text())
    assert {*config} == {"receivers", "processors", "exporters", "service"}
    for pipeline in config["service"]["pipelines"].values():
        assert {*pipeline} == {"receivers", "processors", "exporters"}
        for kind, names in pipeline.items():
            assert set(names) == {*config[kind]}  # each is defined, and none for nothing
        assert pipeline["processors"][0] == "memory_limiter"
    pushed = services["demo"]["environment"]["CLAIMSCOPE_OTLP_ENDPOINT"]
    listens = config["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert (pushed, listens) == ("http://collector:4318", "0.0.0.0:4318")
    (job,) = [job for job in read("prometheus.yml")["scrape_configs"] if job["job_name"] == "collector"]
    assert job["static_configs"] == [{"targets": ["collector:8889"]}]
    assert config["exporters"]["prometheus"]["endpoint"] == "0.0.0.0:8889"
    assert config["exporters"]["prometheus"]["namespace"] == "otlp"  # else panels would count what was scraped twice


def test_settings_of_the_demos_parts_exist(services: Mapping[str, Any]) -> None:
    from claimscope import config

    names = {f"{config.ENVIRONMENT_PREFIX}{name.upper()}" for name in config.Config.__struct_fields__}
    ours = {name for name in services["demo"]["environment"] if name.startswith(config.ENVIRONMENT_PREFIX)}
    assert ours <= names
    assert ours != set()


def test_the_page_fits_a_screen_and_names_the_ports_that_are_open(services: Mapping[str, Any]) -> None:
    page = (HERE / "README.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 40
    for service in services.values():
        for port in service.get("ports", []):
            assert port.split(":")[1] in page
