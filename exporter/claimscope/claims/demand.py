"""What do claims ask for, with their classes' selectors and their alternatives resolved?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from claimscope.kube.objects import ClaimSpec, DeviceClass, DeviceRequest, DeviceSelector, Toleration

Selection = tuple[str, ...]  # CEL expressions that must all hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to meet a request: the request itself, or one alternative of a prioritized list."""

    number: int  # among all options of the demand
    claim: int  # which of the claims
    request: str
    name: str  # "gpu", or "gpu/any" of a prioritized list
    device_class: str
    selectors: Selection | None  # of the class, then of the claim; None: the class does not exist
    every: bool = False  # allocationMode All
    count: int = 1
    admin: bool = False
    tolerations: tuple[Toleration, ...] = ()
    capacity: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A constraint over the devices of some options."""

    attribute: str
    distinct: bool
    options: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What claims want together on one node; usually one claim."""

    requests: tuple[tuple[Option, ...], ...]
    rules: tuple[Rule, ...] = ()

    @property
    def options(self) -> tuple[Option, ...]:
        """Every option, in the order of their numbers."""
        return tuple(option for request in self.requests for option in request)

    @property
    def devices(self) -> int:
        """How many devices the first alternatives want; All counts as one."""
        return sum(1 if request[0].every else request[0].count for request in self.requests)


def demand_of(specs: Sequence[ClaimSpec], classes: Mapping[str, DeviceClass]) -> Demand:
    """What claims want, with the selectors of their classes."""
    requests: list[tuple[Option, ...]] = []
    rules: list[Rule] = []
    number = 0
    for claim, spec in enumerate(specs):
        own: list[Option] = []
        for request in spec.devices.requests or ():
            alternatives = request.first_available or ([request.exactly] if request.exactly is not None else [])
            options = tuple(
                _option(number + index, claim, request.name, each, bool(request.first_available), classes)
                for index, each in enumerate(alternatives)
            )
            number += len(options)
            if options:
                requests.append(options)
                own.extend(options)
        for constraint in spec.devices.constraints or ():
            named = set(constraint.requests or ())
            attribute = constraint.match_attribute or constraint.distinct_attribute
            if attribute:
                rules.append(Rule(
                    attribute=attribute,
                    distinct=constraint.match_attribute is None,
                    options=frozenset(
                        option.number for option in own if not named or option.name in named or option.request in named
                    ),
                ))
    return Demand(requests=tuple(requests), rules=tuple(rules))


def _option(
    number: int, claim: int, request: str, wanted: DeviceRequest, alternative: bool, classes: Mapping[str, DeviceClass]
) -> Option:
    device_class = classes.get(wanted.device_class_name)
    capacity = (wanted.capacity.requests if wanted.capacity is not None else None) or {}
    return Option(
        number=number,
        claim=claim,
        request=request,
        name=f"{request}/{wanted.name}" if alternative else request,
        device_class=wanted.device_class_name,
        selectors=None if device_class is None else
        (*_expressions(device_class.spec.selectors), *_expressions(wanted.selectors)),
        every=wanted.allocation_mode == "All",
        count=1 if wanted.count is None else wanted.count,
        admin=bool(wanted.admin_access),
        tolerations=tuple(wanted.tolerations or ()),
        capacity=tuple(sorted(capacity.items())),
    )


def _expressions(selectors: list[DeviceSelector] | None) -> Selection:
    return tuple(each.cel.expression for each in selectors or () if each.cel is not None)
