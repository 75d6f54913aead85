"""docs/dashboards.md: which question does each board answer, and how does it look?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dashboards.grafana import Dashboard, Panel

PAGE: Final = Path(__file__).parent.parent / "docs" / "dashboards.md"

_HEAD: Final = """\
# Dashboards

Made by `python -m dashboards`; change `dashboards/boards` and run it again.

Eight boards for Grafana 11 and newer. They lead to each other: from a number on the fleet's board to the claim, the
node or the device class behind it, with the time range and the cluster kept; from an alert, to its runbook. A state has
the same colour on all of them, a class or a namespace too, and every panel says what it shows.

| board | for |
|---|---|
"""

_IMPORT: Final = """
## Import

By hand: *Dashboards > New > Import*, one file of [dashboards/json](../dashboards/json) each. Uids stay the same from
release to release, so a newer file replaces the older board and links stay whole.

By file, for Grafana's own provisioning:

```yaml
apiVersion: 1
providers:
- name: claimscope
  folder: claimscope
  type: file
  options: {path: /var/lib/grafana/dashboards/claimscope}
```

In a cluster, as ConfigMaps that Grafana's sidecar picks up:

```sh
kubectl -n monitoring create configmap claimscope-dashboards --from-file=dashboards/json
kubectl -n monitoring label configmap claimscope-dashboards grafana_dashboard=1
```

## What they expect

- The agents' targets carry a label `node`, and all targets a label `cluster` where one Prometheus has several
  clusters. Scrape with `honorLabels: true`, or `namespace` and `pod` are those of the exporter.
  [scrape.yml](../alerts/scrape.yml) has jobs that do both.
- Job names contain `claimscope-agent`, which tells agents that do not answer from other targets.
- Prometheus has loaded the [recording rules](../alerts/rules/recording.yml). Figures of a fleet, of namespaces and of
  what claims held, used and cost are read from them alone, so that a board with 10,000 GPUs stays quick; without the
  rules these panels are empty, and so are those about alerts without the others of [alerts](../alerts/rules).
- Figures over the chosen time are sums of recorded rates: devices and claims that are gone by now count for as long as
  they were there, and what lies before the rules were loaded does not count.
- Errors of memory and links are written down every five minutes, so that what came last shows up to five minutes late.
- A tile is grey and says so while whoever would know does not answer: a count of 0 means that somebody looked.
- XIDs and taints are marked on boards about one node, one claim, or health. On the fleet's board and the claims board a
  switch at the top shows them; there only XIDs that are grave.
- The price of a GPU-hour is a variable of the boards that show cost. GPU-hours count MIG devices as their part of a GPU
  (`gpu_size_ratio`) and shared GPUs once. Waste is held time in which the GPU did not work; where no driver measures
  that, as on MIG devices of an A100, nothing is called wasted.
- Boards are not editable in Grafana: save a copy, or change them here.
"""


def text(boards: Iterable[Dashboard]) -> str:
    """The page."""
    boards = tuple(boards)
    rows = "".join(
        f"| [{_name(board)}](#{_name(board).lower().replace(' ', '-')}) | {board.description} |\n" for board in boards
    )
    parts = "".join(
        f"\n## {_name(board)}\n\n{board.description}\n\n"
        + "".join(
            f"- **{row.title.replace('$', '')}**{' (closed at first)' if row.collapsed else ''} {_panels(row.panels)}\n"
            for row in board.rows
        )
        + f"\n![{_name(board)}, a preview drawn from the demo's data](images/{board.uid}.png)\n"
        for board in boards
    )
    return _HEAD + rows + _IMPORT + parts


def _name(board: Dashboard) -> str:
    return board.title.removeprefix("claimscope / ")


def _panels(panels: Iterable[Panel]) -> str:
    return ", ".join(panel.title for panel in panels)
