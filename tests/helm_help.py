"""What does the chart render to? Helm's own library, as Python objects.

It offers no API versions, so that nothing in the chart may depend on Capabilities. A Go runtime lives in the process
from the first use on: a process that renders must not fork.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent.parent / "deploy" / "helm" / "claimscope"
Json = dict[str, Any]


@functools.cache
def _chart() -> Any:
    from helm_python import Chart

    return Chart.load(str(CHART))


def texts(values: Mapping[str, Any] | None = None, *, name: str = "claimscope", namespace: str = "claimscope",
          upgrade: bool = False) -> dict[str, str]:
    """The text of each template by its path below templates/."""
    return dict(_rendered(json.dumps(values or {}), name, namespace, upgrade))


@functools.lru_cache(maxsize=64)
def _rendered(values: str, name: str, namespace: str, upgrade: bool) -> dict[str, str]:
    rendered = _chart().render(
        json.loads(values), name=name, namespace=namespace, is_upgrade=upgrade, is_install=not upgrade
    )
    return {path.partition("/templates/")[2]: text for path, text in rendered.items()}


def objects(found: Mapping[str, str]) -> list[Json]:
    """The objects of rendered templates."""
    return [
        document
        for path, text in sorted(found.items()) if not path.endswith("NOTES.txt")
        for document in _parsed(text)
    ]  # fmt: skip


@functools.lru_cache(maxsize=512)
def _documents(text: str) -> tuple[Json, ...]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return tuple(document for document in yaml.load_all(text, loader) if document)


def _parsed(text: str) -> list[Json]:
    return copy.deepcopy(list(_documents(text)))


def render(values: Mapping[str, Any] | None = None, *, name: str = "claimscope", namespace: str = "claimscope",
           upgrade: bool = False) -> list[Json]:
    """All objects, hooks included."""
    return objects(texts(values, name=name, namespace=namespace, upgrade=upgrade))


def only(found: list[Json], kind: str, name: str | None = None) -> Json:
    """The one object of a kind, or of a kind and name."""
    (one,) = (each for each in found if each["kind"] == kind and name in (None, each["metadata"]["name"]))
    return one


def nested(path: str, value: object) -> Json:
    """{"a": {"b": value}} of `a.b`."""
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def merged(*given: Mapping[str, Any]) -> Json:
    """Values files laid over each other, as `helm -f a -f b`."""
    result: Json = {}
    for each in given:
        for key, value in each.items():
            before = result.get(key)
            both = isinstance(before, dict) and isinstance(value, Mapping)
            result[key] = merged(before, value) if both else copy.deepcopy(value)  # type: ignore[arg-type]
    return result


@functools.cache
def _file(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def presets() -> dict[str, Json]:
    """The values files that come with the chart, and the bare defaults."""
    paths = sorted((CHART / "presets").glob("*.yaml"))
    return {"defaults": {}, **{path.stem: yaml.safe_load(_file(path)) for path in paths}}


def defaults() -> Json:
    """values.yaml."""
    return copy.deepcopy(yaml.safe_load(_file(CHART / "values.yaml")))


def schema() -> Json:
    """values.schema.json."""
    return json.loads(_file(CHART / "values.schema.json"))  # type: ignore[no-any-return]


def leaves(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted path."""
    for key, value in found.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value
