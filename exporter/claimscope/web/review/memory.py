"""What is remembered of reviews, for how long, and how many are asked for at most? Nothing here waits or asks."""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Answers that hold for a while; of more than `most` the ones longest unused are forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: K, value: V, until_ns: int) -> None:
        """Remembers an answer."""
        self._kept[key] = (value, until_ns)
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def get(self, key: K, now_ns: int) -> V | None:
        """The answer, where it still holds."""
        found = self._kept.get(key)
        if found is None or now_ns >= found[1]:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def forget(self, key: K) -> None:
        """As if it had never been known."""
        self._kept.pop(key, None)

    def __contains__(self, key: K) -> bool:
        """Whether there was an answer, which may not hold any more."""
        return key in self._kept


@dataclass(slots=True, kw_only=True)
class Allowance:
    """So many at once, and then so many a second."""

    burst: float
    a_second: float
    left: float
    at_ns: int

    @classmethod
    def full(cls, burst: float, a_second: float, now_ns: int) -> Allowance:
        """One of which nothing is used yet."""
        return cls(burst=burst, a_second=a_second, left=burst, at_ns=now_ns)

    def take(self, now_ns: int) -> bool:
        """Uses one; False where none is left."""
        self.left = min(self.burst, self.left + self.a_second * (now_ns - self.at_ns) / 1e9)
        self.at_ns = now_ns
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


class Allowances(Generic[K]):
    """An allowance for each of many; those longest unused are forgotten."""

    def __init__(self, burst: float, a_second: float) -> None:
        self._burst, self._a_second = burst, a_second
        self._kept: OrderedDict[K, Allowance] = OrderedDict()

    def take(self, key: K, now_ns: int) -> bool:
        """Uses one; False where none is left."""
        own = self._kept.get(key)
        if own is None:
            own = self._kept[key] = Allowance.full(self._burst, self._a_second, now_ns)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return own.take(now_ns)

    def give_back(self, key: K) -> None:
        """One that was taken is not counted."""
        own = self._kept.get(key)
        if own is not None:
            own.left = min(own.burst, own.left + 1.0)


_KEPT: Final = 1_024  # addresses or callers
_PER_ADDRESS: Final = (10.0, 2.0)  # burst, a second: one Prometheus has one token, renewed each hour
_DOUBT: Final = (3.0, 1 / 200)  # refused tokens of an address before it is doubtful, three again after ten minutes
_OF_NEW: Final = (50.0, 20.0)
_OF_DOUBTFUL: Final = (20.0, 5.0)


class Standing(enum.Enum):
    """What is known of who sends a token."""

    KNOWN = "known"  # the token was accepted before
    NEW = "new"  # never seen, of an address that has sent hardly any that were refused
    DOUBTFUL = "doubtful"  # of one that has


class UnknownTokens:
    """How many tokens that were never seen may be reviewed: so many of one address, and so many of all of a standing.

    However many addresses send made-up tokens, each uses up its good standing with the first of them. What is left to
    addresses of good standing none of the others can use.
    """

    def __init__(self, now_ns: int) -> None:
        self._of_all = {
            Standing.NEW: Allowance.full(*_OF_NEW, now_ns), Standing.DOUBTFUL: Allowance.full(*_OF_DOUBTFUL, now_ns),
        }  # fmt: skip
        self._addresses: Allowances[str] = Allowances(*_PER_ADDRESS)
        self._doubts: Allowances[str] = Allowances(*_DOUBT)

    def take(self, address: str, now_ns: int) -> Standing | None:
        """As what one more may be reviewed; None where it may not."""
        if not self._addresses.take(address, now_ns):
            return None
        standing = Standing.NEW if self._doubts.take(address, now_ns) else Standing.DOUBTFUL
        if self._of_all[standing].take(now_ns):
            return standing
        if standing is Standing.NEW:
            self.not_refused(address)
        return None

    def not_refused(self, address: str) -> None:
        """What was taken speaks not against the address."""
        self._doubts.give_back(address)
