"""Wires the controller together: a lease decides who works, watches bring the cluster in, Snapshots go out.

Only wiring lives here. Each kind is followed by a task of its own and fails alone; what stands in no list any more
is forgotten with the leadership, since the next leader counts from where this one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claimscope.claims.engine import Engine
from claimscope.claims.explain import Explanation, explain
from claimscope.claims.model import ClusterSnapshot
from claimscope.claims.selectors import Selectors
from claimscope.clock import Clock, SystemClock
from claimscope.config import ControllerConfig
from claimscope.export.cluster import ClusterCollector
from claimscope.kube.api import Access, AccessSource, ApiClient, ApiError, InCluster, Kubeconfig
from claimscope.kube.follow import WatchStatus, follow, samples
from claimscope.kube.kinds import WatchedKind, watched_kinds
from claimscope.kube.lease import LeaderElection
from claimscope.kube.objects import unix_seconds
from claimscope.metrics.controller import own
from claimscope.model import Sample
from claimscope.web.application import Check, ListenError, Readiness, start_site
from claimscope.web.cluster import make_cluster_application

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 1.0
STALE_SECONDS = 400.0  # a watch ends after 300 s at the latest and is heard of then


class ControllerError(Exception):
    """The controller cannot start: one line that says what, where and what to do."""
