"""What does somebody need to know who comes from dcgm-exporter? docs/dcgm.md, made from the rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from claimscope.export.dcgm.rows import ABSENT, Row, Source, rows
from claimscope.metrics.spec import Quantity, Type


def _factor(row: Row) -> str:
    if row.source in (Source.XID, Source.EVENTS):
        return "–"
    exact = f"{row.scale:g}"
    if row.scale < 1 and (1 / row.scale).is_integer():
        exact = f"1 / {1 / row.scale:,.0f}"
    return f"rate × {exact}" if row.source is Source.RATE else exact


def _line(row: Row) -> str:
    renamed = "" if row.renamed == row.name else f"`{row.renamed}`"
    kind = "counter" if row.type is Type.BARE_COUNTER else row.type.value
    ours = ", ".join(f"`{name}`" for name in row.ours)
    return f"| `{row.name}` | {renamed or '–'} | {kind} | {ours} | {_factor(row)} | {row.note or '–'} |"


def _table(members: Iterable[Row]) -> str:
    lines = "\n".join(_line(row) for row in members)
    return f"| family | name since DCGM 4.6 | type | ours | factor | note |\n|---|---|---|---|---|---|\n{lines}\n"


def markdown(quantities: Sequence[Quantity]) -> str:
    """The page."""
    made = rows(quantities)
    absent = "\n".join(
        f"| {names if '`' in names else ', '.join(f'`{n}`' if ' ' not in n else n for n in names.split(', '))} "
        f"| {reason} |"
        for names, reason in ABSENT.items()
    )
    return f"""\
<!-- Written by `make docs` from exporter/claimscope/export/dcgm/document.py. -->
# The names of dcgm-exporter

Dashboards and alerts that were made for dcgm-exporter go on working while you move. The agent then shows the same
figures twice on one page, under its own names and under NVIDIA's, without DCGM being there:

```sh
claimscope agent --compat-dcgm on
```

| setting | meaning |
|---|---|
| `--compat-dcgm on` | the families that dcgm-exporter has by default, and NVLink rates |
| `--compat-dcgm all` | every DCGM family that there is a number for, and `DCGM_EXP_*` |
| `--compat-dcgm-names dcgm-4.6` | the names that DCGM 4.6 gave the fields; `both` for both at once |
| `--compat-dcgm-hostname-label hostname` | the label as since dcgm-exporter 4.8.2; before it was `Hostname` |

Scrape with `honorLabels: true`. With Prometheus' default the labels `namespace`, `pod` and `container` arrive as
`exported_namespace` and so on, because the agent's own pod has labels of these names too. Where dcgm-exporter still
runs, two jobs then serve the same families: leave one of them out of the sums with `job="..."`.

## Labels

In dcgm-exporter's order: `gpu`, `UUID`, `pci_bus_id`, `device`, `modelName`, on a MIG instance `GPU_I_PROFILE` and
`GPU_I_ID` (`UUID` is then still the GPU's), `Hostname`, which is the node's name, `DCGM_FI_DRIVER_VERSION`, and where
somebody holds the device:

| label | meaning |
|---|---|
| `namespace`, `pod`, `container` | who holds it; without pod and container where no running pod uses the claim |
| `dra_claim_name`, `dra_claim_namespace` | the claim through which it is held |
| `dra_driver_name`, `dra_pool_name`, `dra_device_name` | what its driver calls the device |
| `dra_mig_profile`, `dra_mig_device_uuid` | the MIG device that was claimed |
| `resourceclaim` | the claim's name once more, as in our own metrics; dcgm-exporter does not have it |
| `gpu_pair` | on NVLink rates: `0-1` is what GPU 0 sends to, or receives from, GPU 1. dcgm-exporter does not have it |
| `err_code`, `err_msg` | on `DCGM_FI_DEV_XID_ERRORS` |
| `xid`, `clock_event`, `window_size_in_ms` | on `DCGM_EXP_XID_ERRORS_*` and `DCGM_EXP_CLOCK_EVENTS_*` |
| `health_watch`, `health_error_code` | on `DCGM_EXP_GPU_HEALTH_STATUS` |
| `nvlink`, `gpu_uuid`, `model_name` | on lines of one NVLink, the last two in place of `UUID` and `modelName` |

A label without a value is left out.

`gpu_pair` is only where it is known of every link that is up where it leads. All lead to the same GPU: the pair's
traffic is the GPU's. They lead to several: each pair has a series of its own once the collector `nvlink-per-link` is
on, else there is one without the label, as there is where one link's end is not known. They lead to an NVSwitch:
`0-nvswitch`, because behind a switch nobody can tell who was meant: neither the driver nor DCGM counts by destination
there, so on HGX and DGX boards `gpu_pair="0-1"` has no series and never will. Ask for `gpu_pair=~"0-.*"`, which is all
that GPU 0 sends. `claimscope agent --simulate a100x4-bridge` is a node of bridged pairs to try it on.

## What to mind

- **Sums count shared GPUs several times.** As in dcgm-exporter, a device has one series for every container that holds
  it, each with the figure of the whole device; and every MIG instance repeats the watts of its board. Take
  `max by (Hostname, gpu, GPU_I_ID)` before you sum. The right figures for a claim are
  `dra_claim_gpu_energy_joules_total`, `dra_claim_gpu_busy_seconds_total` and `dra_claim_gpu_memory_used_bytes`: each
  holder's own part, which adds up to the device.
- `avg by (resourceclaim, namespace) (DCGM_FI_DEV_GPU_UTIL)` has a group without a claim: the devices that nobody holds.
- A series ends when the pod does, and a counter goes on in a series with other labels: `increase` over that loses
  what lies between. Ours are counted by device, or by claim.
- `sum(DCGM_FI_DEV_GPU_UTIL > 10) / sum(kube_node_status_allocatable{{resource="nvidia_com_gpu"}}) * 100` adds percents
  and multiplies by a hundred again, and on nodes that are moved to DRA its denominator is gone. The part of the GPUs
  that is in use is `count(gpu_utilization_ratio{{engine="gpu"}} > 0.1) / sum(dra_pool_devices)`.
- The rates are those of the last window of one second, where dcgm-exporter shows a sample of up to 30 seconds ago.
- The words of `err_msg` are those of health.md, from NVIDIA's published XID catalogue; dcgm-exporter has a table of
  its own with others. Match on `err_code`.
- `DCGM_FI_DEV_GPU_UTIL_RATIO`, the name of `DCGM_FI_DEV_GPU_UTIL` since DCGM 4.6, is in percent here as there. Names
  and units are those of DCGM 4.6; changes of later versions are not followed.
- A GPU instance has its series while any of its compute instances answers.
- These families are scraped only. They are not pushed by [OTLP](otlp.md), which has the same figures under
  OpenTelemetry's names and our own.
- In the OpenMetrics format the counters have the type `unknown`: there a counter's name must end in `_total`.

## Families of `--compat-dcgm on`

The factor makes our unit DCGM's. Integers are rounded down as there. `rate` is the rise per second of our counter.

{_table(row for row in made if row.default)}
## Further families of `--compat-dcgm all`

{_table(row for row in made if not row.default)}
## Not served

A number that nothing measured is not made up: these families are absent, and so are lines of these forms.

| family | why, and what there is |
|---|---|
{absent}
"""
