"""Fixtures that several files share."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long an example takes says more of the machine than of the code; what hangs meets the test's own time limit.
settings.register_profile("unhurried", parent=settings.default)
settings.load_profile("unhurried")


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
def amtool() -> str:
    """Path of Alertmanager's tool."""
    return _tool("amtool", "prometheus-alertmanager")


@pytest.fixture(scope="session")
def alertmanager() -> str:
    """Path of an Alertmanager, which Debian calls by a longer name."""
    return shutil.which("alertmanager") or _tool("prometheus-alertmanager", "prometheus-alertmanager")


@pytest.fixture(scope="session")
def cc() -> str:
    """Path of a C compiler."""
    return _tool("cc", "gcc and libc6-dev")


@pytest.fixture(scope="session")
def openssl() -> str:
    """Path of openssl, to make certificates."""
    return _tool("openssl", "openssl")


@pytest.fixture
def kept_logging() -> Iterator[None]:
    """For a test that runs the command line within this process: that sends all log lines elsewhere."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
