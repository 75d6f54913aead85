"""What do the shipped ValidatingAdmissionPolicies say of a request? Evaluates the very expressions of the manifest.

As the API server does: a policy is asked where its rules and its conditions match; variables are evaluated where they
are used; an expression that fails counts as a refusal, since every policy has failurePolicy Fail.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

MANIFESTS = Path(__file__).parent.parent / "deploy" / "manifests"
NODE_NAME = "authentication.kubernetes.io/node-name"
_EXTENSIONS = ("bindings", "optional", "strings", "sets", "lists", "two-var-comprehensions")
_VARIABLE = re.compile(r"\bvariables\.(\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One request as admission sees it."""

    user: str
    node: str | None  # that the token is bound to
    operation: str
    group: str
    resource: str  # with its subresource
    object: Json | None = None
    old: Json | None = None

    def data(self) -> Json:
        """The variables of an expression."""
        extra = {"authentication.kubernetes.io/pod-name": ["p"]}
        if self.node is not None:
            extra[NODE_NAME] = [self.node]
        request = {"operation": self.operation, "userInfo": {"username": self.user, "extra": extra}}
        return {"object": self.object, "oldObject": self.old, "request": request}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One policy that has a binding."""

    name: str
    spec: Json = field(repr=False)

    def matches(self, review: Review) -> bool:
        """Whether it is asked at all."""
        return any(
            review.group in rule["apiGroups"] and review.resource in rule["resources"]
            and review.operation in rule["operations"]
            for rule in self.spec["matchConstraints"]["resourceRules"]
        ) and all(self._true(each["expression"], review) for each in self.spec["matchConditions"])  # fmt: skip

    def refusals(self, review: Review) -> Iterator[str]:
        """The messages of the validations that do not hold."""
        for each in self.spec["validations"]:
            if not self._true(each["expression"], review):
                yield self._message(each, review)

    def _true(self, expression: str, review: Review) -> bool:
        kind, value = self._evaluate(expression, review)
        return kind == "BOOL" and value is True

    def _message(self, validation: Mapping[str, str], review: Review) -> str:
        if "messageExpression" not in validation:
            return validation["message"]
        kind, value = self._evaluate(validation["messageExpression"], review)
        assert kind == "STRING", (validation, value)
        return str(value)

    def _evaluate(self, expression: str, review: Review) -> tuple[str, object]:
        result = _compiled(self._inlined(expression)).eval(data=review.data())
        return result.type().name(), result.value()

    def _inlined(self, expression: str) -> str:
        known = {each["name"]: each["expression"] for each in self.spec.get("variables", ())}
        while _VARIABLE.search(expression):
            expression = _VARIABLE.sub(lambda found: f"({known[found[1]]})", expression)
        return expression


@functools.cache
def _compiled(expression: str) -> Any:
    return _environment().compile(expression)


@functools.cache
def _environment() -> Any:
    from cel_expr_python import cel

    text = "name: admission\nextensions:\n" + "".join(f"- name: {name}\n" for name in _EXTENSIONS)
    names = dict.fromkeys(("object", "oldObject", "request"), cel.Type.DYN)
    return cel.NewEnv(config=cel.NewEnvConfigFromYaml(text), variables=names)


def documents(*names: str) -> list[Json]:
    """The objects of manifests, by default of all."""
    files = [MANIFESTS / name for name in names] if names else sorted(MANIFESTS.glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text()) if document]


@functools.cache
def policies() -> tuple[Policy, ...]:
    """The policies that are bound and deny."""
    found = documents("admission-policy.yaml")
    bound = {
        each["spec"]["policyName"]
        for each in found
        if each["kind"] == "ValidatingAdmissionPolicyBinding" and each["spec"]["validationActions"] == ["Deny"]
    }
    return tuple(
        Policy(name=each["metadata"]["name"], spec=each["spec"])
        for each in found
        if each["kind"] == "ValidatingAdmissionPolicy" and each["metadata"]["name"] in bound
    )


def refusals(review: Review) -> list[str]:
    """What the policies have against a request, as "policy: message"; empty where it is let in."""
    return [
        f"{policy.name.removeprefix('claimscope-')}: {message}"
        for policy in policies() if policy.matches(review)
        for message in policy.refusals(review)
    ]  # fmt: skip


def asked(review: Review) -> list[str]:
    """The policies that look at a request."""
    return [policy.name.removeprefix("claimscope-") for policy in policies() if policy.matches(review)]
