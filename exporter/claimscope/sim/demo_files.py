"""What do the demo's programs read? The configuration of each."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from claimscope.health.thresholds import ROWS
from claimscope.sim import script

ROUTES: Final = Path(__file__).with_name("demo_alertmanager.yml")
POLICY: Final = "stale_seconds: 90\n"  # of fencing: an agent that is away is soon said to be silent
_RULES: Final = Path(__file__).with_name("demo_rules.yml")
_HOLD: Final = re.compile(r"^(\s+for: )(\d+)s$", re.MULTILINE)
_LONG_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One simulated node with its agent."""

    node: str
    profile: str
    port: int

    @property
    def address(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"


def prometheus_config(agents: Sequence[Agent], controller_port: int, alertmanager: str | None = None) -> str:
    """The whole configuration of the demo's Prometheus."""
    targets = "\n".join(
        f"  - {{targets: ['127.0.0.1:{agent.port}'], labels: {{node: {agent.node}}}}}" for agent in agents
    )
    told = ""
    if alertmanager is not None:
        told = f"alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{alertmanager}']}}]}}]}}\n"
    return f"""\
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 2s}}
rule_files: [rules.yml]
{told}\
scrape_configs:
- job_name: claimscope-agent
  static_configs:
{targets}
- job_name: claimscope-controller
  static_configs:
  - targets: ['127.0.0.1:{controller_port}']
"""


def rules(haste: float) -> str:
    """The rules that Prometheus loads, with holds that much shorter."""
    text = _RULES.read_text(encoding="utf-8")
    return _HOLD.sub(lambda found: f"{found[1]}{max(1, round(int(found[2]) / haste))}s", text)


def quick_thresholds() -> str:
    """Thresholds of health with which findings come and go as soon as the demo's alerts: no long time stays long."""
    return json.dumps({
        row.name: max(row.low, row.default / script.FACTOR) for row in ROWS
        if row.unit == "seconds" and row.default >= _LONG_SECONDS
    })
