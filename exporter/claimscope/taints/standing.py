"""Which rules of ours stand, when what was written just now has not come back through the watch yet?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from claimscope.kube.objects import DeviceTaintRule
from claimscope.taints.apply import Standing, standing_of

OWN_WORD_SECONDS: Final = 30.0  # after which what the watch says is believed, whatever was written
INEFFECTIVE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    at_ns: int
    uid: str
    after: DeviceTaintRule | None  # None: deleted


@dataclass(slots=True)
class StandingRules:
    """The mirror of all rules, with our own writes laid over it until the mirror has them."""

    _written: dict[str, _Written] = field(default_factory=dict)
    _changed_wall: dict[str, float] = field(default_factory=dict)  # when we last wrote it

    def wrote(self, name: str, uid: str, after: DeviceTaintRule | None, *, now_ns: int, wall: float) -> None:
        """Notes a write that the server took."""
        self._written[name] = _Written(at_ns=now_ns, uid=uid if after is None else after.metadata.uid, after=after)
        if after is None:
            self._changed_wall.pop(name, None)
        else:
            self._changed_wall[name] = wall

    def over(self, rules: Mapping[str, DeviceTaintRule], now_ns: int) -> Mapping[str, DeviceTaintRule]:
        """Every rule there is, ours and others', by name."""
        for name, written in list(self._written.items()):
            if _is_told(written, rules.get(name)) or now_ns - written.at_ns > OWN_WORD_SECONDS * 1e9:
                del self._written[name]
        if not self._written:
            return rules
        found = dict(rules)
        for name, written in self._written.items():
            if written.after is not None:
                found[name] = written.after
            else:
                found.pop(name, None)
        return found

    def ineffective(self, standing: Mapping[str, Standing], wall: float) -> dict[str, bool]:
        """Of each rule whether the cluster has not said anything of it for too long."""
        for name in self._changed_wall.keys() - standing.keys() - self._written.keys():
            del self._changed_wall[name]
        found: dict[str, bool] = {}
        for name, each in standing.items():
            since = max(self._changed_wall.get(name, 0.0), each.fence.created_wall or 0.0)
            found[name] = not each.honoured and since > 0 and wall - since >= INEFFECTIVE_SECONDS
        return found


def ours(rules: Mapping[str, DeviceTaintRule]) -> dict[str, Standing]:
    """Those of them that claimscope made."""
    return {name: standing for name, rule in rules.items() if (standing := standing_of(rule)) is not None}


def _is_told(written: _Written, rule: DeviceTaintRule | None) -> bool:
    if written.after is None:  # with a finalizer it stays for a while, and counts as long
        deleted = rule is None or rule.metadata.deletion_timestamp is not None
        return deleted or rule is None or rule.metadata.uid != written.uid
    if rule is None:
        return False
    return rule.metadata.uid != written.uid or _not_older(
        rule.metadata.resource_version, written.after.metadata.resource_version
    )


def _not_older(version: str, than: str) -> bool:
    """Versions are numbers that grow (documented so since Kubernetes 1.35); of others only equality says something."""
    if version.isdigit() and than.isdigit():
        return int(version) >= int(than)
    return version == than
