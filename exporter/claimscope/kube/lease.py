"""Which of several replicas leads, and which agents are alive? Both are said by Leases (coordination.k8s.io/v1).

The election works as client-go's leaderelection does. A lease is another's for as long as it changes often enough, by
this process' own monotonic clock: the times written in it come from the other's wall clock and decide nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from claimscope.clock import Clock
from claimscope.kube.api import COMMON_REASONS, ApiClient, ApiError, ApiReason, decode, malformed
from claimscope.kube.listwatch import BackOff
from claimscope.kube.objects import Lease, LeaseSpec, unix_seconds
from claimscope.metrics.controller import own
from claimscope.model import Sample

log = logging.getLogger(__name__)

COMPONENT_LABEL: Final = "app.kubernetes.io/component"
_GROUP_VERSION: Final = "coordination.k8s.io/v1"
_NO_SPEC: Final = LeaseSpec()
_RELEASE_SECONDS: Final = 1.5  # how long an orderly stop may take to say that nobody leads any more


def micro_time(wall_ns: int) -> str:
    """Unix nanoseconds as a MicroTime; the API server refuses Lease times without microseconds."""
    moment = datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{wall_ns // 1000 % 1_000_000:06d}Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A Lease as it was read or written last: typed, and whole, so that what others keep in it is written back."""

    lease: Lease
    raw: dict[str, Any]


class _LeaseObject:
    """One Lease of the API server. Every call raises ApiError."""

    def __init__(self, api: ApiClient, namespace: str, name: str) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._all = f"/apis/{_GROUP_VERSION}/namespaces/{namespace}/leases"
        self.path = f"{self._all}/{name}"

    async def read(self) -> _Found | None:
        """The lease, or None where there is none."""
        try:
            return self._found(await self._api.get(self.path))
        except ApiError as error:
            if error.reason is ApiReason.NOT_FOUND:
                return None
            raise

    async def create(self, spec: Mapping[str, Any], metadata: Mapping[str, Any]) -> _Found:
        """Makes it; CONFLICT where it is there already."""
        body = {
            "apiVersion": _GROUP_VERSION,
            "kind": "Lease",
            "metadata": {"namespace": self._namespace, "name": self._name, **metadata},
            "spec": spec,
        }
        return self._found(await self._api.send("POST", self._all, body=body))

    async def replace(self, found: _Found, spec: Mapping[str, Any], metadata: Mapping[str, Any]) -> _Found:
        """Writes over what was found; CONFLICT where somebody else did since, NOT_FOUND where it is gone."""
        kept = {key: value for key, value in found.raw.get("metadata", {}).items() if key != "managedFields"}
        body = {
            **found.raw,
            "metadata": {**kept, **metadata},
            "spec": {**(found.raw.get("spec") or {}), **spec},
        }
        return self._found(await self._api.send("PUT", self.path, body=body))

    def _found(self, body: bytes) -> _Found:
        lease = decode(body, Lease, self.path)
        try:
            return _Found(lease=lease, raw=msgspec.json.decode(body, type=dict[str, Any]))
        except (msgspec.DecodeError, RecursionError) as error:
            raise malformed(self.path, error) from error


class _Troubles:
    """Counts failures and says each change once."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.present: ApiReason | None = None
        self.counts: Counter[ApiReason] = Counter()

    def happened(self, error: ApiError) -> None:
        """One more."""
        self.counts[error.reason] += 1
        if error.reason is not self.present:
            log.warning("cannot write %s: %s", self._what, error)
        self.present = error.reason

    def over(self) -> None:
        """It worked."""
        if self.present is not None:
            log.info("%s can be written again", self._what)
        self.present = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSeen:
    """The lease as it was before this process took it."""

    holder: str | None = None  # None: nobody held it, or there was none
    renew_wall: float | None = None  # until then the one before worked; None where there was no lease
    unchanged: bool = field(default=False, compare=False)  # nobody has written it since this process led the last time


class LeaderElection:
    """One candidate. While it leads, nobody else does, as long as monotonic clocks run at the same speed.

    It leads for `renew_deadline_seconds` after the start of the last renewal that succeeded, and others wait
    `lease_seconds` from when they saw that renewal: so it has stopped before another begins, whatever the network does.
    """

    def __init__(
        self,
        api: ApiClient,
        namespace: str,
        name: str,
        identity: str,
        clock: Clock,
        *,
        lease_seconds: int = 15,
        renew_deadline_seconds: float = 10.0,
        retry_seconds: float = 2.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if not retry_seconds * 1.2 < renew_deadline_seconds < lease_seconds:
            raise ValueError(
                f"retry ({retry_seconds} s) must be shorter than the renew deadline ({renew_deadline_seconds} s), and "
                f"that than the lease ({lease_seconds} s)"
            )
        self._object = _LeaseObject(api, namespace, name)
        self._identity = identity
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._deadline_seconds = renew_deadline_seconds
        self._retry_seconds = retry_seconds
        self._jitter = jitter
        self._troubles = _Troubles(f"the lease {namespace}/{name}")
        self._found: _Found | None = None
        self._observed = _NO_SPEC  # as of the last change that was seen
        self._observed_ns = 0
        self._missing_ns: int | None = None  # since when the lease is known not to be there
        self._renewed_ns: int | None = None  # start of the last renewal that succeeded; None: does not lead
        self._taken = LeaseSeen()
        self._written: LeaseSpec | None = None  # as this process wrote it last
        self._changes = 0

    @property
    def is_leader(self) -> bool:
        """True while this process may act as leader; also right when nothing ran for a while."""
        return self._renewed_ns is not None and self._left_seconds(self._renewed_ns) > 0

    @property
    def holder(self) -> str | None:
        """Who leads, as far as is known."""
        return self._observed.holder_identity or None

    @property
    def trouble(self) -> ApiReason | None:
        """Why the lease could not be read or written the last time; None where it could."""
        return self._troubles.present

    async def run(self, lead: Callable[[LeaseSeen], Awaitable[None]]) -> None:
        """Stands for election until it is cancelled; `lead` runs while this process leads and is cancelled with that.

        Returns when `lead` returns. At every end the lease is let go, so that another can lead at once.
        """
        try:
            while True:
                await self._acquire()
                if await self._lead(lead):
                    return
        finally:
            await self._release()

    async def _acquire(self) -> None:
        while True:
            if await self._try(self._deadline_seconds / 2):
                break
            await asyncio.sleep(self._retry_seconds * (1.0 + 0.2 * self._jitter()))
        self._changes += 1
        log.info("leading as %s; before: %s", self._identity, self._taken.holder or "nobody")

    async def _lead(self, lead: Callable[[LeaseSeen], Awaitable[None]]) -> bool:
        """True where the work itself ended, False where the leadership was lost."""
        work = asyncio.ensure_future(lead(self._taken))
        renewing = asyncio.create_task(self._renew())
        try:
            await asyncio.wait((work, renewing), return_when=asyncio.FIRST_COMPLETED)
            ended = work.done()
            if not ended:
                self._lost()
        finally:
            work.cancel()
            renewing.cancel()
            await asyncio.wait((work, renewing))
        if ended or not work.cancelled():
            work.result()  # what it raised, also while it was being stopped
        if not renewing.cancelled():
            renewing.result()
        return ended

    def _lost(self) -> None:
        self._renewed_ns = None
        if self.holder == self._identity:
            log.warning("not leading any more: the lease could not be renewed in %.0f s", self._deadline_seconds)
        else:
            log.warning("not leading any more: the lease is held by %s", self.holder or "nobody")

    async def _renew(self) -> None:
        """Returns when the lease is lost."""
        while self._renewed_ns is not None and (left := self._left_seconds(self._renewed_ns)) > 0:
            await asyncio.sleep(min(self._retry_seconds, left))
            left = self._left_seconds(self._renewed_ns)
            if left > 0:
                # Half of what is left: one answer that never comes must not cost the leadership.
                await self._try(min(left, max(left / 2, self._retry_seconds / 2)))

    def _left_seconds(self, renewed_ns: int) -> float:
        return self._deadline_seconds - (self._clock.monotonic_ns() - renewed_ns) / 1e9

    async def _try(self, seconds: float) -> bool:
        """One attempt to take or renew the lease."""
        began_ns = self._clock.monotonic_ns()
        try:
            async with asyncio.timeout(seconds):
                held = await self._take_or_renew_beside_others()
        except TimeoutError:
            self._failed(ApiError(ApiReason.TIMEOUT, f"no answer about {self._object.path} within {seconds:.1f} s"))
            return False
        except ApiError as error:
            self._failed(error)
            return False
        self._troubles.over()
        if held:
            self._renewed_ns = began_ns
        return held

    def _failed(self, error: ApiError) -> None:
        self._found = None  # what was known may be out of date: read it before the next attempt
        self._missing_ns = None  # it may have been there meanwhile
        self._troubles.happened(error)

    async def _take_or_renew_beside_others(self) -> bool:
        """A leader whose Lease was annotated by somebody meanwhile reads it again and renews at once."""
        try:
            return await self._take_or_renew()
        except ApiError as error:
            if error.reason is not ApiReason.CONFLICT or self._renewed_ns is None or self._found is None:
                raise
            self._found = None
            return await self._take_or_renew()

    async def _take_or_renew(self) -> bool:
        found = self._found
        if found is None or self._renewed_ns is None:
            found = await self._object.read()
            self._observe(found)
        if found is None:
            if not self.is_leader and self._deleted_under_another():
                return False
            self._taken_over(self._observed)
            self._wrote(await self._object.create(self._spec(None), {}))
            return True
        seen = found.lease.spec
        if seen.holder_identity != self._identity:
            if self._renewed_ns is not None:  # somebody led, or let go, behind this leader's back: it leads no more
                self._renewed_ns = None
                return False
            if self._held_by_another(seen):
                return False
        self._taken_over(seen)
        self._wrote(await self._object.replace(found, self._spec(seen), {}))
        return True

    def _wrote(self, found: _Found) -> None:
        self._written = found.lease.spec
        self._observe(found)

    def _taken_over(self, seen: LeaseSpec) -> None:
        if self._renewed_ns is None:
            self._taken = LeaseSeen(
                holder=seen.holder_identity or None,
                renew_wall=unix_seconds(seen.renew_time),
                unchanged=self._found is not None and seen == self._written,
            )

    def _observe(self, found: _Found | None) -> None:
        self._found = found
        if found is None:
            if self._missing_ns is None:
                self._missing_ns = self._clock.monotonic_ns()
            return
        self._missing_ns = None
        spec = found.lease.spec
        if spec == self._observed:
            return
        if spec.holder_identity not in (self._observed.holder_identity, self._identity):
            log.info("the lease %s is held by %s", self._object.path, spec.holder_identity or "nobody")
        self._observed, self._observed_ns = spec, self._clock.monotonic_ns()

    def _held_by_another(self, spec: LeaseSpec) -> bool:
        if not spec.holder_identity or spec.holder_identity == self._identity:
            return False
        return self._lasts(spec, self._observed_ns)

    def _deleted_under_another(self) -> bool:
        """True while somebody may lead whose lease was deleted: it makes it again, or has stopped in due time."""
        if not self._observed.holder_identity or self._missing_ns is None:
            return False
        return self._lasts(self._observed, self._missing_ns)

    def _lasts(self, spec: LeaseSpec, since_ns: int) -> bool:
        seconds = spec.lease_duration_seconds or self._lease_seconds
        return (self._clock.monotonic_ns() - since_ns) / 1e9 < seconds

    def _spec(self, before: LeaseSpec | None) -> dict[str, Any]:
        now = micro_time(self._clock.wall_ns())
        spec: dict[str, Any] = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._lease_seconds,
            "renewTime": now,
        }
        if before is None:
            return {**spec, "acquireTime": now, "leaseTransitions": 0}
        if before.holder_identity != self._identity:
            return {**spec, "acquireTime": now, "leaseTransitions": (before.lease_transitions or 0) + 1}
        return spec

    async def _release(self) -> None:
        led = self.is_leader
        self._renewed_ns = self._found = None
        if not led:
            return
        now = micro_time(self._clock.wall_ns())
        spec = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now, "acquireTime": now}
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                found = await self._object.read()  # a renewal that was cut off may have been written
                if found is not None and found.lease.spec.holder_identity == self._identity:
                    self._observed = (await self._object.replace(found, spec, {})).lease.spec
        except (ApiError, TimeoutError) as error:
            log.warning("the lease is not let go, another replica leads in %d s: %s", self._lease_seconds,
                        error if isinstance(error, ApiError) else "no answer in time")
        else:
            log.info("not leading any more; the lease %s is let go", self._object.path)

    def samples(self) -> list[Sample]:
        """How the election goes, as families of the controller itself."""
        return [
            own("leader", self.is_leader),
            own("leader_changes_total", self._changes),
            *(
                own("lease_errors_total", self._troubles.counts[reason], reason.value)
                for reason in dict.fromkeys((*COMMON_REASONS, *self._troubles.counts))
            ),
        ]


class HeartbeatLease:
    """What an agent writes: that it lives (renewTime), and in annotations what it has found."""

    def __init__(
        self,
        api: ApiClient,
        namespace: str,
        name: str,
        identity: str,
        labels: Mapping[str, str],
        clock: Clock,
        *,
        beat_seconds: float = 60.0,
        change_seconds: float = 5.0,
        changes_at_once: int = 5,
        first_wait_seconds: float = 2.0,
        jitter: Callable[[], float] = random.random,
        keeps: Callable[[str], bool] | None = None,
        asks: str = "",
        asked_seconds: float = 10.0,
    ) -> None:
        """`keeps` tells the annotations that others write: they stay.

        By the one named `asks` something is asked of this agent: while it is there the Lease is renewed, and so read,
        each `asked_seconds`.
        """
        self._object = _LeaseObject(api, namespace, name)
        self._identity = identity
        self._keeps = keeps
        self._asks = asks
        self._notes: Mapping[str, str] = {}
        self._asked_seconds = asked_seconds
        self._labels = {COMPONENT_LABEL: "agent", **labels}
        self._clock = clock
        self._beat_seconds = beat_seconds
        self._change_seconds = change_seconds  # of changes in the long run, one in so long ...
        self._ahead_seconds = (changes_at_once - 1) * change_seconds  # ... but a few after a quiet time at once
        self._change_due = float("-inf")  # when the next change is written, if all come evenly; the loop's time
        self._jitter = jitter
        self._back_off = BackOff(first_wait_seconds, jitter)
        self._troubles = _Troubles(f"the heartbeat {namespace}/{name}")
        self._found: _Found | None = None
        self._annotations: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._renewed_wall: float | None = None

    @property
    def errors(self) -> Mapping[ApiReason, int]:
        """Failed writes."""
        return self._troubles.counts

    @property
    def renewed_wall(self) -> float | None:
        """When the API server last took it, Unix seconds."""
        return self._renewed_wall

    @property
    def asked(self) -> str:
        """What is asked of this agent, as it was last read; "" for nothing."""
        return self.note(self._asks)

    def note(self, name: str) -> str:
        """An annotation as it was last read or written; "" where there is none."""
        return self._notes.get(name, "")

    async def look(self) -> None:
        """Reads what there is before anything is written. Raises ApiError."""
        self._saw(await self._object.read())

    def set_annotations(self, annotations: Mapping[str, str]) -> None:
        """From now on the lease carries these, and none but what it keeps; a change is written soon."""
        if annotations != self._annotations:
            self._annotations = dict(annotations)
            self._changed.set()

    async def run(self) -> None:
        """Writes until it is cancelled. The last state stays: that it is not renewed any more says the rest."""
        while True:
            self._changed.clear()
            try:
                await self._write()
            except ApiError as error:
                self._found = None
                self._troubles.happened(error)
                await asyncio.sleep(self._back_off.next_seconds(error))
                continue
            self._troubles.over()
            self._back_off.reset()
            seconds = min(self._asked_seconds, self._beat_seconds) if self.asked else self._beat_seconds
            pause = seconds * (0.9 + 0.2 * self._jitter())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(pause, 0.0)):
                    await self._changed.wait()
                    await self._turn()

    async def _turn(self) -> None:
        """Waits until one change more may be written: what flaps must not write each time."""
        now = asyncio.get_running_loop().time()
        earliest = max(self._change_due, now - self._ahead_seconds)
        self._change_due = earliest + self._change_seconds
        await asyncio.sleep(earliest - now)

    async def _write(self) -> None:
        found = self._found if self._found is not None else await self._object.read()
        try:
            self._saw(await self._put(found))
        except ApiError as error:
            if error.reason not in (ApiReason.CONFLICT, ApiReason.NOT_FOUND) or found is None:
                raise
            self._troubles.counts[error.reason] += 1  # somebody else changed or deleted it since
            self._saw(await self._put(await self._object.read()))
        self._renewed_wall = self._clock.wall_ns() / 1e9

    def _saw(self, found: _Found | None) -> None:
        self._found = found
        self._notes = {} if found is None else found.lease.metadata.annotations or {}

    async def _put(self, found: _Found | None) -> _Found:
        before = found.raw["metadata"] if found is not None else {}
        keeps = self._keeps
        others = {} if keeps is None else (before.get("annotations") or {})
        kept = {name: text for name, text in others.items() if keeps is not None and keeps(name)}
        metadata = {
            "annotations": {**kept, **self._annotations},
            "labels": {**(before.get("labels") or {}), **self._labels},
        }
        if found is None:
            return await self._object.create(self._spec(), metadata)
        return await self._object.replace(found, self._spec(), metadata)

    def _spec(self) -> dict[str, Any]:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": round(3 * self._beat_seconds) or 1,
            "renewTime": micro_time(self._clock.wall_ns()),
        }
