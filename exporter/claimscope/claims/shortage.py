"""What stands between a demand and its devices, in numbers?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from claimscope.claims.demand import Demand
from claimscope.claims.fitting import Stage
from claimscope.claims.model import Pool


class Tally(NamedTuple):
    """Devices, counted."""

    exist: int = 0  # of the drivers that the selectors name, or of all
    match: int = 0
    in_use: int = 0  # of those that match
    tainted: int = 0  # of those that match and are not in use
    usable: int = 0  # the rest, in pools that serve
    errors: int = 0
    unknown: int = 0


class Obstacle(NamedTuple):
    """A taint, wherever it stands."""

    key: str
    value: str
    effect: str
    rule: str  # "": the driver set it


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """A node that comes as close as any."""

    node: str
    match: int
    usable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Why a demand finds no devices, or that it does."""

    demand: Demand
    stage: Stage | None  # FITS: some node could serve it; None: unknown, see `unknown`
    tally: Tally
    only_on: tuple[str, ...] | None = None  # the nodes that count; None: every node
    fragmented: bool = False  # fails for want of free devices on one node, of which there are enough in all
    over_limit: int = 0  # so many devices "every device" means on a node, and that is more than a claim can hold
    nowhere: int = 0  # matching devices whose node selector matches no node
    closest: tuple[Near, ...] = ()
    closest_nodes: int = 0  # how many nodes get as far
    drivers: tuple[str, ...] = ()  # that selectors name
    missing_drivers: tuple[str, ...] = ()  # of these, the ones that publish nothing
    incomplete: tuple[Pool, ...] = ()  # pools that serve nobody at present, and could serve this demand
    incomplete_matches: int = 0  # matching devices that can be seen in them
    only_incomplete: bool = False  # there is no other pool of these drivers
    error: str = ""  # what a selector says on `tally.errors` devices
    error_selector: str = ""
    unknown: str = ""
    taints: tuple[tuple[Obstacle, int], ...] = ()  # in the way, and on how many matching devices that are free
    holders: tuple[tuple[str, str], ...] = ()  # (device, claim) of devices that match, the closest node's first
