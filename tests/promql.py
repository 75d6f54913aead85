"""What does a query name, and which labels does its result carry? PromQL as a tree, held against the metric tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import promql_parser as promql

from claimscope.metrics import cluster, controller, tables
from claimscope.metrics.spec import Family, Type

Labels = frozenset[str]
NONE: Labels = frozenset()
_KEEP_LABELS = frozenset({"topk", "bottomk", "limitk"})
_TIMELESS = frozenset({"vector", "time", "scalar"})


def own_series(target_labels: Iterable[str]) -> dict[str, Labels]:
    """Every series of ours with the labels that it may carry; the agents' targets name their node too."""
    added = frozenset(target_labels)
    known = {
        name: labels | added | {"node"}
        for family in tables.all_families().values() for name, labels in _series_of(family)
    }  # fmt: skip
    for families in (cluster.FAMILIES, controller.FAMILIES):
        known |= {name: labels | added for family in families.values() for name, labels in _series_of(family)}
    return known


def _series_of(family: Family) -> Iterator[tuple[str, Labels]]:
    labels = frozenset(family.labels)
    if family.type is not Type.HISTOGRAM:
        yield family.name, labels
        return
    yield f"{family.name}_bucket", labels | {"le"}
    yield f"{family.name}_sum", labels
    yield f"{family.name}_count", labels


@dataclass(slots=True)
class Reading:
    """What a query names, and what in it cannot be."""

    known: Mapping[str, Labels]
    metrics: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def labels_of(self, node: promql.Expr) -> Labels:
        """The labels that a part of the query may have; none of a number."""
        match node:
            case promql.VectorSelector():
                return self._selector(node)
            case promql.MatrixSelector():
                return self._selector(node.vector_selector)
            case promql.SubqueryExpr() | promql.ParenExpr() | promql.UnaryExpr():
                return self.labels_of(node.expr)
            case promql.Call():
                return self._call(node)
            case promql.AggregateExpr():
                return self._aggregation(node)
            case promql.BinaryExpr():
                return self._operation(node)
        return NONE

    def _want(self, labels: Iterable[str], have: Labels, where: str) -> None:
        self.faults += [f"label {label} in {where} is on no series there" for label in labels if label not in have]

    def _selector(self, node: promql.VectorSelector) -> Labels:
        name = node.name
        if name is None:
            self.faults.append(f"{node.prettify()}: a selector names its metric")
            return NONE
        self.metrics.append(name)
        if name not in self.known:
            self.faults.append(f"{name}: no such metric")
            return NONE
        self._want((each.name for each in node.matchers.matchers), self.known[name], f"a selector of {name}")
        return self.known[name]

    def _call(self, node: promql.Call) -> Labels:
        name, arguments = node.func.name, list(node.args)
        given = [self.labels_of(each) for each in arguments]
        if name in _TIMELESS:
            return NONE
        if name == "histogram_quantile":
            self._want(["le"], given[1], name)
            return given[1] - {"le"}
        if name in ("label_replace", "label_join"):
            texts = [each.val for each in arguments[1:]]
            self._want(filter(None, texts[2:3] if name == "label_replace" else texts[2:]), given[0], name)
            return given[0] | {texts[0]}
        if name == "absent":
            named = arguments[0]  # an absent series has the labels that the selector gives it a value for
            equal = named.matchers.matchers if isinstance(named, promql.VectorSelector) else ()
            return frozenset(each.name for each in equal if each.op == promql.MatchOp.Equal)
        return NONE.union(*given)

    def _aggregation(self, node: promql.AggregateExpr) -> Labels:
        have = self.labels_of(node.expr)
        if have == NONE and self.faults:
            return frozenset(node.modifier.labels) if node.modifier is not None else NONE
        labels = [] if node.modifier is None else list(node.modifier.labels)
        without = node.modifier is not None and node.modifier.type == promql.AggModifierType.Without
        self._want(labels, have, f"{node.op} {'without' if without else 'by'} ({', '.join(labels)})")
        if str(node.op) in _KEEP_LABELS:
            return have
        if str(node.op) == "count_values" and isinstance(node.param, promql.StringLiteral):
            labels.append(node.param.val)
        return have - frozenset(labels) if without else frozenset(labels)

    def _operation(self, node: promql.BinaryExpr) -> Labels:
        left, right = self.labels_of(node.lhs), self.labels_of(node.rhs)
        operator, modifier = str(node.op), node.modifier
        matching = None if modifier is None else modifier.matching
        on = matching is not None and matching.type == promql.LabelModifierType.Include
        labels = [] if matching is None else list(matching.labels)
        for side, have in (("left", left), ("right", right)):
            self._want(labels, have, f"{'on' if on else 'ignoring'} ({', '.join(labels)}), {side} of {operator},")
        if operator in ("and", "unless"):
            return left
        if operator == "or":
            return left | right
        if _is_number(node.lhs) or _is_number(node.rhs):
            return left | right
        grouped = [] if modifier is None else list(modifier.group_labels or ())
        card = None if modifier is None else modifier.card
        if card == promql.VectorMatchCardinality.ManyToOne:
            self._want(grouped, right, f"group_left ({', '.join(grouped)}), right of {operator},")
            return left | frozenset(grouped)
        if card == promql.VectorMatchCardinality.OneToMany:
            self._want(grouped, left, f"group_right ({', '.join(grouped)}), left of {operator},")
            return right | frozenset(grouped)
        if on:
            return frozenset(labels)
        if matching is None and left != right:
            # Absent labels match each other, so this may be meant; but then a label that one side gains breaks it.
            self.faults.append(f"the sides of {operator} differ in {', '.join(sorted(left ^ right))}: say how to match")
        return (left | right) - frozenset(labels)


def _is_number(node: promql.Expr) -> bool:
    match node:
        case promql.NumberLiteral():
            return True
        case promql.ParenExpr() | promql.UnaryExpr():
            return _is_number(node.expr)
        case promql.BinaryExpr():
            return _is_number(node.lhs) and _is_number(node.rhs)
        case promql.Call():
            return node.func.name in ("time", "scalar")
    return False


def read(query: str, known: Mapping[str, Labels]) -> tuple[Reading, Labels]:
    """What a query names, and the labels of its result; raises ValueError where it is no PromQL."""
    reading = Reading(known)
    labels = reading.labels_of(promql.parse(query))
    return reading, labels


def nodes(query: str) -> Iterator[tuple[promql.Expr, tuple[promql.Expr, ...]]]:
    """Every part of a query with the parts that it stands in, the outermost first."""
    yield from _below(promql.parse(query), ())


def _below(
    node: promql.Expr, parents: tuple[promql.Expr, ...]
) -> Iterator[tuple[promql.Expr, tuple[promql.Expr, ...]]]:
    yield node, parents
    inside: tuple[promql.Expr, ...] = ()
    match node:
        case promql.MatrixSelector():
            inside = (node.vector_selector,)
        case promql.SubqueryExpr() | promql.ParenExpr() | promql.UnaryExpr():
            inside = (node.expr,)
        case promql.Call():
            inside = tuple(node.args)
        case promql.AggregateExpr():
            inside = (node.expr,)
        case promql.BinaryExpr():
            inside = (node.lhs, node.rhs)
    for each in inside:
        yield from _below(each, (*parents, node))
