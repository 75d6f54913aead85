"""Which rights do the manifests give, and how does the simulated API server hold a client to them?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from admission import Json, Review, documents, refusals
from claimscope.sim.api.access import Asked, User
from claimscope.sim.api.errors import Refused
from claimscope.sim.api.writes import Target

AGENT = "system:serviceaccount:claimscope:claimscope-agent"
CONTROLLER = "system:serviceaccount:claimscope:claimscope-controller"

Right = tuple[str, str, str]  # namespace ("": all of them, and what is in none), resource with its group, verb


def rights(account: str, *files: str) -> frozenset[Right]:
    """What a service account may do by these manifests."""
    return rights_of(account, documents(*files))


def rights_of(account: str, found: list[Json]) -> frozenset[Right]:
    """What a service account may do by these objects."""
    return frozenset(right for right, _ in _given(account, found))


def names_of(account: str, found: list[Json]) -> dict[Right, frozenset[str]]:
    """Which of these rights hold for objects of certain names alone, and of which."""
    named: dict[Right, frozenset[str]] = {}
    for right, names in _given(account, found):
        named[right] = named.get(right, names) | names if names and named.get(right, names) else frozenset()
    return {right: names for right, names in named.items() if names}


def _given(account: str, found: list[Json]) -> Iterator[tuple[Right, frozenset[str]]]:
    """Each right with the names that it is for; none: any."""
    roles = {(each["kind"], _namespace(each), each["metadata"]["name"]): each for each in found if "rules" in each}
    for binding in found:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding") or account not in _subjects(binding):
            continue
        role = binding["roleRef"]
        namespace = _namespace(binding)
        where = "" if role["kind"] == "ClusterRole" else namespace
        for rule in roles[role["kind"], where, role["name"]]["rules"]:
            names = frozenset(rule.get("resourceNames", ()))
            yield from (
                ((namespace, _named(group, resource), verb), names)
                for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
            )  # fmt: skip


def _namespace(obj: Json) -> str:
    return str(obj["metadata"].get("namespace", ""))


def _subjects(binding: Json) -> list[str]:
    return [f"system:serviceaccount:{each['namespace']}:{each['name']}" for each in binding["subjects"]]


def _named(group: str, resource: str) -> str:
    return f"{resource}.{group}" if group else resource


@dataclass(slots=True)
class Warden:
    """Holds every client of a server to the rights of one account, and writes down what was asked."""

    account: str
    given: frozenset[Right]
    named: Mapping[Right, frozenset[str]]  # rights that are for objects of these names alone
    node: str | None = None  # that the account's token is bound to
    used: set[Right] = field(default_factory=set)
    forbidden: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def rule(self, user: User, asked: Asked) -> bool:
        """For SimApiServer's `rule`."""
        resource = _named(asked.group, f"{asked.resource}/{asked.subresource}".rstrip("/"))
        for namespace in {"", asked.namespace}:
            right = (namespace, resource, asked.verb)
            if right in self.given and (right not in self.named or asked.name in self.named[right]):
                self.used.add(right)
                return True
        self.forbidden.append(f"{asked.verb} {resource} {asked.namespace}/{asked.name}")
        return False

    def admit(self, target: Target, operation: str, new: Json | None, old: Json | None) -> None:
        """For SimApiServer's `admit`."""
        kind = target.kind
        resource = f"{kind.plural}/{target.subresource}".rstrip("/")
        review = Review(
            user=self.account, node=self.node, operation=operation, group=kind.group, resource=resource, object=new,
            old=old,
        )
        for message in refusals(review):
            self.refused.append(f"{operation} {resource} {target.name}: {message}")
            raise Refused(422, "Invalid", f"{target.name} is forbidden: ValidatingAdmissionPolicy: {message}")

    def options(self) -> dict[str, Any]:
        """For SimApiServer."""
        return {"rule": self.rule, "admit": self.admit}

    def troubles(self) -> list[str]:
        """What was not allowed."""
        return [*self.forbidden, *self.refused]

    def unused(self) -> list[Right]:
        """Rights that nothing has asked for."""
        return sorted(self.given - self.used)


def warden(account: str, *files: str, node: str | None = None) -> Warden:
    """Holds to what the manifests give."""
    return warden_of(account, documents(*files), node=node)


def warden_of(account: str, found: list[Json], *, node: str | None = None) -> Warden:
    """Holds to what these objects give."""
    return Warden(account, rights_of(account, found), names_of(account, found), node=node)


def written(given: Iterable[Right]) -> list[str]:
    """Rights as text, "verb resource in namespace"."""
    return sorted(f"{verb} {resource}" + (f" in {where}" if where else "") for where, resource, verb in given)
