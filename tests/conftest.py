"""Fixtures that several files share."""

from __future__ import annotations

import os
import shutil

import pytest


def _tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is not None:
        return path
    text = f"no {name}: install {package}"
    if os.environ.get("CLAIMSCOPE_REQUIRE_TOOLS") == "1":
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture(scope="session")
def promtool() -> str:
    """Path of promtool."""
    return _tool("promtool", "prometheus")


@pytest.fixture(scope="session")
def prometheus() -> str:
    """Path of a Prometheus server."""
    return _tool("prometheus", "prometheus")


@pytest.fixture(scope="session")
def cc() -> str:
    """Path of a C compiler."""
    return _tool("cc", "gcc and libc6-dev")
