"""Why does a claim find no devices? The causes that follow from slices, claims, taints and selectors.

The scheduler says "cannot allocate all claims" for every one of them; here they are told apart, with the numbers.
"""

from __future__ import annotations

from claimscope.claims.causes import Question, count, unknown
from claimscope.claims.cluster import Cluster
from claimscope.claims.demand import Demand, Option
from claimscope.claims.fitting import DEVICES_PER_CLAIM, Stage
from claimscope.claims.model import Diagnosis, Key, PendingReason
from claimscope.claims.selectors import cure as selector_cure
from claimscope.claims.shortage import Shortage, Tally

NEEDED_KINDS = ("deviceclasses", "resourceslices")  # without them nothing is known of devices
USEFUL_KINDS = {"devicetaintrules": "taints by rule", "nodes": "node selectors of devices"}
POOLS_SHOWN = 10


def needs(demand: Demand) -> str:
    """What a demand wants, in words."""
    plain: dict[tuple[str, bool], int] = {}
    words: list[str] = []
    for request in demand.requests:
        if len(request) > 1:
            words.append(" or else ".join(_wanted(option) for option in request))
        elif request[0].every:
            words.append(_wanted(request[0]))
        else:
            key = (request[0].device_class, request[0].admin)
            plain[key] = plain.get(key, 0) + request[0].count
    counted = [
        f"{count(number, 'device')} of {name}{' (admin access)' if admin else ''}"
        for (name, admin), number in plain.items()
    ]
    return f"needs {' and '.join((*counted, *words)) or 'no device'} on one node"


def _wanted(option: Option) -> str:
    number = "every device" if option.every else count(option.count, "device")
    return f"{number} of {option.device_class}{' (admin access)' if option.admin else ''}"


def numbers(tally: Tally) -> str:
    """How many there are: "12 exist, 8 match, 7 are in use, 1 is tainted"."""
    words = [_are(tally.exist, "exist", "exists"), _are(tally.match, "match", "matches")]
    if tally.in_use:
        words.append(_are(tally.in_use, "are in use", "is in use"))
    if tally.tainted:
        words.append(_are(tally.tainted, "are tainted", "is tainted"))
    if tally.usable:
        words.append(_are(tally.usable, "are free", "is free"))
    return ", ".join(words)


def _are(number: int, several: str, one: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _summary(shortage: Shortage, more: str = "") -> str:
    wanted = needs(shortage.demand)
    if shortage.only_on is not None and len(shortage.only_on) == 1:
        wanted = f"{wanted.removesuffix(' one node')} {shortage.only_on[0]}, where the pod's other claims have theirs"
    return f"{wanted}: {numbers(shortage.tally)}{more}"


def not_read(question: Question) -> Diagnosis | None:
    """What there is cannot be known, since a kind may not be read or has not been read yet."""
    if question.unallocated is None:
        return None
    missing = [kind for kind in NEEDED_KINDS if not question.reads(kind)]
    if not missing:
        return None
    return unknown(question, f"{' and '.join(missing)} cannot be read, so nothing is known about devices")


def no_driver(question: Question) -> Diagnosis | None:
    """Nobody publishes devices of the drivers that the selectors name."""
    shortage = question.shortage
    if shortage is None or shortage.stage is not Stage.MATCH:
        return None
    if not question.cluster.pools:
        summary, who = "no driver publishes any device: the cluster has no ResourceSlice", "a DRA driver"
    elif shortage.drivers and set(shortage.drivers) == set(shortage.missing_drivers):
        names = ", ".join(shortage.missing_drivers)
        summary, who = f"driver {names}, which the selectors ask for, publishes no device", f"driver {names}"
    else:
        return None
    there = sorted({key.driver for key in question.cluster.pools})
    return Diagnosis(
        reason=PendingReason.NO_DRIVER,
        summary=summary,
        evidence=(*((f"drivers that publish: {', '.join(there[:10])}",) if there else ()), *question.words),
        cure=f"install {who} or repair it: its kubelet plugin must run on the nodes that have the devices",
    )


def pool_incomplete(question: Question) -> Diagnosis | None:
    """A pool that could serve is being rewritten, or its slices contradict each other, and nothing else explains."""
    shortage = question.shortage
    if shortage is None or shortage.stage is Stage.FITS or not shortage.incomplete:
        return None
    told = "is currently being updated" in question.said or "invalid resource pools" in question.said
    only_hope = shortage.stage is Stage.MATCH and (shortage.incomplete_matches or shortage.only_incomplete)
    if not told and not only_hope:
        return None
    return Diagnosis(
        reason=PendingReason.POOL_INCOMPLETE,
        summary=_summary(
            shortage, f"; {count(len(shortage.incomplete), 'pool')} cannot be used, not being published as a whole"
        ),
        evidence=(*_incomplete_words(shortage), *question.words),
        cure="wait for the driver to publish the rest; if it lasts, read the log of the driver's kubelet plugin",
    )


def _incomplete_words(shortage: Shortage) -> list[str]:
    lines = [
        f"pool {pool.key.driver}/{pool.key.pool}: {pool.problem}" if pool.problem is not None else
        f"pool {pool.key.driver}/{pool.key.pool}: {pool.slices_seen} of {pool.slices_expected} slices of generation "
        f"{pool.generation}"
        for pool in shortage.incomplete[:POOLS_SHOWN]
    ]
    more = len(shortage.incomplete) - POOLS_SHOWN
    return [*lines, *([f"and {more} more pools that serve nobody at present"] if more > 0 else [])]


def selector_error(question: Question) -> Diagnosis | None:
    """A selector fails on some devices, and the scheduler stops at the first of them."""
    shortage = question.shortage
    if question.unallocated is None or shortage is None:
        return None
    told = "CEL runtime error" in question.said
    fails = bool(shortage.tally.errors)
    if told and not fails and not shortage.tally.unknown:
        if shortage.stage is not Stage.FITS:
            return None  # the words are old; what is in the way now is found below
        return unknown(
            question, "the scheduler's last word is of a selector that failed; it fails on no device now, so the word "
            "is older than its repair, and the scheduler has yet to look again"
        )
    if not told and (not fails or question.condition is not None or shortage.stage is Stage.FITS):
        return None  # whatever else the scheduler said, it got past the selectors
    _, _, text = question.said.rpartition("CEL runtime error: ")
    text = shortage.error or text
    where = f"fails on {count(shortage.tally.errors, 'device')}" if fails else "fails on some device"
    return Diagnosis(
        reason=PendingReason.SELECTOR_ERROR,
        summary=f"a CEL selector {where}, and the scheduler stops there: {text}",
        evidence=(
            *((f"selector: {shortage.error_selector}",) if shortage.error_selector else ()),
            f"{needs(shortage.demand)}: {numbers(shortage.tally)}",
            *question.words,
        ),
        cure=selector_cure(shortage.error_selector, text),
    )


def not_evaluated(question: Question) -> Diagnosis | None:
    """The answer hangs on selectors that could not be evaluated."""
    shortage = question.shortage
    if shortage is None or shortage.stage is not None:
        return None
    return unknown(question, shortage.unknown)


def too_few(question: Question) -> Diagnosis | None:
    """The claim alone finds no devices."""
    return scarce(question, question.shortage)


def too_few_together(question: Question) -> Diagnosis | None:
    """Each of the pod's claims finds devices, all of them together find none on one node."""
    if question.shortage is None or question.shortage.stage is not Stage.FITS:
        return None
    found = scarce(question, question.together)
    if found is None:
        return None
    return Diagnosis(
        reason=found.reason,
        summary=f"together with {', '.join(question.open_others)} of the same pod {found.summary}",
        evidence=found.evidence,
        cure=found.cure,
    )


def scarce(question: Question, shortage: Shortage | None) -> Diagnosis | None:
    """The stage that the closest node fails at, as a cause."""
    if shortage is None or question.unallocated is None:
        return None
    match shortage.stage:
        case Stage.MATCH if shortage.over_limit:
            reason = PendingReason.TOO_MANY_DEVICES
            cure = "ask for a number of devices instead of all, or narrow the selectors"
        case Stage.MATCH:
            reason, cure = PendingReason.NO_MATCHING_DEVICE, _no_match(shortage)
        case Stage.FREE if shortage.fragmented:
            reason = PendingReason.FRAGMENTED
            cure = "free devices of one node (defragment), or ask for fewer devices per claim"
        case Stage.FREE:
            reason = PendingReason.DEVICES_IN_USE
            cure = "wait for claims to be released, delete some that are idle, or add nodes"
        case Stage.UNTAINTED:
            reason = PendingReason.TAINTED
            cure = _taint_cure(shortage)
        case Stage.CONSTRAINT:
            reason = PendingReason.CONSTRAINT
            cure = "ask for fewer devices, relax the constraint, or free devices that satisfy it together"
        case Stage.COUNTERS:
            reason = PendingReason.COUNTERS_EXHAUSTED
            cure = "release partitions of these devices, or ask for a smaller partition"
        case Stage.CAPACITY:
            reason = PendingReason.CAPACITY_EXHAUSTED
            cure = "ask for less capacity, or release claims that share these devices"
        case _:
            return None
    return Diagnosis(
        reason=reason, summary=_summary(shortage, _ending(shortage)),
        evidence=(*_evidence(question, shortage), *question.words), cure=cure,
    )


def _no_match(shortage: Shortage) -> str:
    if shortage.only_on is not None:
        return "give the claims of the pod devices of one node: delete the pod, or the claim that ties it to its node"
    if shortage.nowhere:
        return "label the nodes that these devices serve, or correct the node selector in the driver's ResourceSlices"
    if shortage.tally.match >= shortage.demand.devices:
        return "no node has as many: ask for fewer devices per claim, or for several claims"
    return "correct the selectors of class or claim (the slices show what devices have), or add such devices"


def _taint_cure(shortage: Shortage) -> str:
    rules = sorted({taint.rule for taint, _ in shortage.taints if taint.rule})
    if rules:
        return f"delete DeviceTaintRule {', '.join(rules[:5])} once the devices may be used again, or tolerate it"
    return "the driver tainted these devices: repair them, or tolerate the taint in the claim"


def _ending(shortage: Shortage) -> str:
    near = shortage.closest[0] if shortage.closest else None
    match shortage.stage:
        case Stage.MATCH if shortage.over_limit:
            return f"; one node has {shortage.over_limit} of them, and one claim can hold {DEVICES_PER_CLAIM}"
        case Stage.MATCH if shortage.nowhere:
            verb = "has a node selector that matches" if shortage.nowhere == 1 else "have node selectors that match"
            return f"; {shortage.nowhere} of them {verb} no node"
        case Stage.MATCH if near is not None and near.match and shortage.tally.match >= shortage.demand.devices:
            return f"; no node has more than {near.match} that match"
        case Stage.FREE if shortage.fragmented and near is not None:
            return f"; no node has more than {near.usable}"
        case Stage.CONSTRAINT:
            rules = [
                f"{'differ' if rule.distinct else 'agree'} in {rule.attribute}" for rule in shortage.demand.rules
            ]
            return f"; no choice of them {' and '.join(rules)}" if rules else ""
        case Stage.COUNTERS:
            return "; the counters that they share are used up"
        case Stage.CAPACITY:
            return "; none has as much capacity left"
        case _:
            return ""


def _evidence(question: Question, shortage: Shortage) -> list[str]:
    lines: list[str] = []
    if shortage.only_on is not None and len(shortage.only_on) != 1:
        names = ", ".join(shortage.only_on[:3]) or "no node"
        more = f" and {len(shortage.only_on) - 3} more nodes" if len(shortage.only_on) > 3 else ""
        lines.append(f"nodes that the pod's other claims leave, having their devices: {names}{more}")
    if shortage.closest and shortage.stage is not Stage.MATCH:
        near = ", ".join(f"{each.node} ({each.usable} free of {each.match})" for each in shortage.closest)
        further = shortage.closest_nodes - len(shortage.closest)
        lines.append(f"closest: {near}{f' and {further} more nodes' if further > 0 else ''}")
    lines += [
        f"device {device} is held by claim {claim}{_users(question.cluster, claim)}"
        for device, claim in shortage.holders
    ]
    rest = shortage.tally.in_use - len(shortage.holders)
    if shortage.holders and rest > 0:
        lines.append(f"and {count(rest, 'more device')} in use")
    for taint, devices in shortage.taints[:10]:
        value = f"={taint.value}" if taint.value else ""
        source = f"DeviceTaintRule {taint.rule}" if taint.rule else "the driver"
        lines.append(f"taint {taint.key}{value}:{taint.effect} of {source} on {count(devices, 'free device')}")
    if shortage.tally.errors:
        lines.append(f"a selector fails on {count(shortage.tally.errors, 'device')}: {shortage.error}")
    lines += _incomplete_words(shortage)
    lines += [
        f"{kind} cannot be read, so {about} are not known"
        for kind, about in USEFUL_KINDS.items() if not question.reads(kind)
    ]
    return lines


def _users(cluster: Cluster, claim: str) -> str:
    namespace, _, name = claim.partition("/")
    held = cluster.claims.get(Key(namespace, name))
    users = [each.name for each in (held.status.reserved_for or ())] if held is not None else []
    if not users:
        return " (no pod uses it)"
    more = f" and {len(users) - 3} more" if len(users) > 3 else ""
    return f" (pod {', '.join(users[:3])}{more})"
