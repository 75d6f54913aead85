"""Does a node satisfy a core/v1 NodeSelector?"""

from __future__ import annotations

from collections.abc import Mapping

from claimscope.kube.objects import Node, NodeSelector, NodeSelectorTerm, SelectorRequirement


def node_matches(selector: NodeSelector, node: Node) -> bool:
    """Whether a node satisfies a node selector (core/v1 NodeSelector: terms ORed, requirements ANDed)."""
    return any(_term_matches(term, node) for term in selector.node_selector_terms or ())


def _term_matches(term: NodeSelectorTerm, node: Node) -> bool:
    if not term.match_expressions and not term.match_fields:
        return False  # an empty term selects nothing
    labels = node.metadata.labels or {}
    fields = {"metadata.name": node.metadata.name}
    return all(_requirement_holds(each, labels) for each in term.match_expressions or ()) and all(
        _requirement_holds(each, fields) for each in term.match_fields or ()
    )


def _requirement_holds(requirement: SelectorRequirement, values: Mapping[str, str]) -> bool:
    found = values.get(requirement.key)
    wanted = requirement.values or []
    match requirement.operator:
        case "In":
            return found in wanted
        case "NotIn":
            return found not in wanted
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
        case "Gt" | "Lt" if found is not None and len(wanted) == 1:
            try:
                return int(found) > int(wanted[0]) if requirement.operator == "Gt" else int(found) < int(wanted[0])
            except ValueError:
                return False
        case _:
            return False
