"""Which rights does each part have, why, and what fails without each? docs/permissions.md, from the manifests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).parent.parent / "deploy" / "manifests"

HEAD = """\
<!-- Written by `make docs` from deploy/manifests/ and scripts/permissions.py. -->
# Permissions

Each part has the rights that it uses and no others. Tests run every part against an API server that holds it to
exactly these rights: none is missing, and none is left over. What RBAC cannot say ("its own node", "only rules of our
own") is said by admission policies.

| file of deploy/manifests/ | apply it |
|---|---|
| `rbac-agent.yaml` | always |
| `rbac-controller.yaml` | with the controller |
| `rbac-controller-node-taints.yaml` | with `node_taints: prefer` or `enforce`, or for maintenance of plugin nodes |
| `rbac-agent-local.yaml` | instead of the controller, with `--taint-writer=local` |
| `rbac-authorization.yaml` | with `--web-authorization=kubernetes` of either part |
| `clusterroles-for-callers.yaml` | likewise; roles to bind to callers, see [authorization](authorization.md) |
| `admission-policy.yaml` | always; needs Kubernetes 1.30 |

The Helm chart has the same, for any namespace and release; the files are rendered from it for the namespace
`claimscope`. In another one without Helm, replace it in all of them, in the user names of the admission policies too: a
policy that names another account than the pods run as never fires, and nothing says so.

Neither part reads Secrets or ConfigMaps, executes in pods, or deletes more than one object at a time. Nothing is asked
of the kubelet's API; its pod-resources socket is a mounted directory.
"""

LOCAL = """\

## Without the controller

With `--taint-writer=local` each agent fences the GPUs of its own node by the controller's code: the same taints,
conditions and Events on the Node, the same guard against Kubernetes 1.36.0 to 1.36.2, whose scheduler exits while any
DeviceTaintRule exists. What differs:

- **Budgets are per node only.** An agent sees one node, so nothing bounds how many GPUs of the cluster are kept from
  work: `budgets.group_share`, `budgets.fleet_share`, `systemic` and `stale_share` bound nothing. `budgets.node_share`,
  `rate`, `cap` and `breaker` count this node's GPUs. A fault that all nodes share may fence all of them.
- Claims are not read: pods get no Events, `dra_constraint_violations_total` is not counted, NoExecute is never written,
  Nodes are not tainted, and no maintenance is carried out.
- Only devices of pools named like the node are fenced, as NVIDIA's driver names them; the admission policy refuses
  others. Names of nodes may have 63 characters.
- What must be remembered stands in the agent's own Lease, and so do pauses: `claimscope taints pause --lease-name
  claimscope-agent-NODE` pauses one node. `taints list` and `taints lift` see the taints of all nodes.
- The agent tells how fencing goes by `claimscope_agent_taint_*`.

Do not run both: with a controller in the cluster, leave `--taint-writer` at its default.

## To uninstall

`helm uninstall` first runs `claimscope taints lift --all` in a Job, which does nothing where another release fences, or
what Helm did not install (`helm template` prints the Job unless it is given `--no-hooks`): it may get the ClusterRole
`claimscope-fencing`, which says whose the taints are. Its account `claimscope-uninstall` may scale the
controller's Deployment and list pods of the namespace to see the last one go (with `--taint-writer=local`: delete the
agents' DaemonSet), since what writes taints would put them up again; get, list and delete DeviceTaintRules; get, list
and patch Nodes, and patch their status; get and patch the controller's two Leases. The admission policies hold it to
what is ours, as they do the controller. Helm deletes account and rights when the Job has done its work. Where the Job
fails they may stay, for the next try; after `helm uninstall --no-hooks`, which takes the policies away, delete them:

```sh
kubectl delete clusterrole,clusterrolebinding claimscope-uninstall --ignore-not-found
kubectl --namespace claimscope delete job,serviceaccount,role,rolebinding claimscope-uninstall --ignore-not-found
```

## One release that fences

All rules, taints and conditions of claimscope are one controller's: two of them would lift each other's, and
uninstalling one would lift all. The ClusterRole `claimscope-fencing` has that name in every release, so that Helm
refuses to install a second one that fences ("exists and cannot be imported into the current release"). Further
releases, say for a pool of nodes whose GPUs are reached in another way, have agents alone (`controller.enabled=false`),
or a controller that writes nothing (`rbac.fencing=false` with `controller.taintMode=observe`); uninstalling them lifts
nothing. Keep agents in the namespace of the controller that is to believe them, and one on each node. With
`kubectl apply` or `rbac.create=false` nobody refuses: mind it yourself.

## To allow eviction

NoExecute deletes pods without regard to disruption budgets. It takes two decisions: `no_execute: true` for a rule in
the taint policy, and `kubectl delete validatingadmissionpolicybinding claimscope-no-execute`.
"""


def document() -> str:
    """The page."""
    parts = [HEAD]
    for path in sorted(MANIFESTS.glob("rbac-*.yaml")):
        parts.append(f"\n## {path.name}\n\n| resource | verbs | where | what for |\n|---|---|---|---|\n")
        parts += (_row(rule, namespace, text) for rule, namespace, text in rules(path.read_text(encoding="utf-8")))
    parts.append("\n## admission-policy.yaml\n\n| policy | what it holds to |\n|---|---|\n")
    for text in _documents((MANIFESTS / "admission-policy.yaml").read_text(encoding="utf-8")):
        found = yaml.safe_load(text)
        if found["kind"] == "ValidatingAdmissionPolicy":
            comment = _joined(text.partition("\nspec:\n")[2].partition("\n  failurePolicy")[0])
            parts.append(f"| `{found['metadata']['name']}` | {comment} |\n")
    return "".join(parts) + LOCAL


def rules(manifest: str) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Each rule of the roles of a manifest, its namespace ("" is everywhere), and the comment above it."""
    for text in _documents(manifest):
        found = yaml.safe_load(text)
        if "rules" not in found:
            continue
        comments = re.findall(r"((?:^  # .*\n)+)(?=  - apiGroups)", text.partition("\nrules:\n")[2], re.MULTILINE)
        namespace = found["metadata"].get("namespace", "")
        yield from (
            (rule, namespace, _joined(comment)) for rule, comment in zip(found["rules"], comments, strict=True)
        )


def _documents(manifest: str) -> list[str]:
    return re.split(r"^---\n", manifest, flags=re.MULTILINE)


def _joined(comment: str) -> str:
    text = " ".join(line.strip().removeprefix("# ") for line in comment.splitlines() if line.strip().startswith("#"))
    return re.sub(r": +(kubectl [a-z -]+)$", r": `\1`", text)


def _row(rule: dict[str, Any], namespace: str, text: str) -> str:
    (group,) = rule["apiGroups"]
    names = ", ".join(f"`{name}.{group}`" if group else f"`{name}`" for name in rule["resources"])
    where = f"namespace `{namespace}`" if namespace else "everywhere"
    return f"| {names} | {', '.join(rule['verbs'])} | {where} | {text} |\n"
