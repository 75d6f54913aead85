"""Which devices did drivers publish for this node, and what are they by uuid?

A slice that disappears says nothing about its devices: the kubelet deletes all slices of its node when it starts,
and a driver's 30 s after its plugin went (kubernetes pkg/kubelet/cm/dra/plugin). So the last known devices stand,
marked as not present.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from claimscope.clock import Clock
from claimscope.kube.api import ApiClient, ApiError, discover
from claimscope.kube.listwatch import FIRST_WAIT_SECONDS, BackOff, ListWatch
from claimscope.kube.objects import Attribute, AttributeValue, DeviceSpec, ResourceSlice
from claimscope.kube.structs import SliceDevice

log = logging.getLogger(__name__)

GROUP: Final = "resource.k8s.io"
VERSIONS: Final = ("v1", "v1beta2", "v1beta1")


class SliceStore:
    """The slices of one node and the devices that follow from them. No I/O."""

    def __init__(self) -> None:
        self._slices: dict[str, ResourceSlice] = {}
        self._devices: dict[tuple[str, str], tuple[SliceDevice, ...]] = {}

    def sync(self, slices: Iterable[ResourceSlice]) -> None:
        """Takes a whole list."""
        self._slices = {entry.metadata.name: entry for entry in slices}
        self._derive()

    def change(self, entry: ResourceSlice, exists: bool) -> None:
        """Takes one event of a watch."""
        if exists:
            self._slices[entry.metadata.name] = entry
        else:
            self._slices.pop(entry.metadata.name, None)
        self._derive()

    def devices(self) -> tuple[SliceDevice, ...]:
        """All devices, in a stable order."""
        return tuple(device for key in sorted(self._devices) for device in self._devices[key])

    def _derive(self) -> None:
        pools: dict[tuple[str, str], list[ResourceSlice]] = {}
        for entry in self._slices.values():
            pools.setdefault((entry.spec.driver, entry.spec.pool.name), []).append(entry)
        for key in self._devices.keys() - pools.keys():
            self._devices[key] = tuple(replace(device, present=False) for device in self._devices[key])
        for key, slices in pools.items():
            newest = max(entry.spec.pool.generation for entry in slices)
            current = [entry for entry in slices if entry.spec.pool.generation == newest]
            found = {
                device.name: SliceDevice(
                    driver=key[0], pool=key[1], device=device.name, attributes=attributes_of(key[0], device)
                )
                for entry in current
                for device in entry.spec.devices or ()
            }
            if len(current) < max(entry.spec.pool.resource_slice_count for entry in current):
                # A generation that is still being written: what it lacks is as it was.
                for device in self._devices.get(key, ()):
                    found.setdefault(device.device, replace(device, present=False))
            self._devices[key] = tuple(found[name] for name in sorted(found))


def attributes_of(driver: str, device: DeviceSpec) -> dict[str, AttributeValue]:
    """A device's attributes in any of the API's shapes, without the driver's own prefix."""
    raw: dict[str, Attribute] = {}
    if device.basic is not None and device.basic.attributes:
        raw |= device.basic.attributes
    raw |= device.attributes or {}
    prefix = f"{driver}/"
    values = ((name.removeprefix(prefix), attribute.value()) for name, attribute in raw.items())
    return {name: value for name, value in values if value is not None}


async def watch_slices(
    api: ApiClient,
    node: str,
    clock: Clock,
    on_devices: Callable[[tuple[SliceDevice, ...]], None],
    on_error: Callable[[ApiError], None],
    on_heard: Callable[[], None] | None = None,
    *,
    on_version: Callable[[str], None] | None = None,
    first_wait_seconds: float = FIRST_WAIT_SECONDS,
) -> None:
    """Follows the ResourceSlices of `node` until it is cancelled; `on_devices` gets each new state, whole.

    `on_heard` is called at each sign of life of the API server, news or not; `on_version` once, with the version that
    the group is served in, so that nobody else need ask for it.
    """
    store = SliceStore()
    shown: tuple[SliceDevice, ...] | None = None

    def show() -> None:
        nonlocal shown
        devices = store.devices()
        if devices != shown:
            shown = devices
            on_devices(devices)

    def sync(slices: list[ResourceSlice], _: frozenset[str]) -> None:
        store.sync(slices)
        show()

    def change(entry: ResourceSlice, exists: bool) -> None:
        store.change(entry, exists)
        show()

    back_off, failed = BackOff(first_wait_seconds, random.random), False
    while True:
        try:
            version = await discover(api, GROUP, VERSIONS, "resourceslices")
            break
        except ApiError as error:
            if not failed:
                log.warning("no ResourceSlices: %s", error)
            failed = True
            on_error(error)
            await asyncio.sleep(back_off.next_seconds(error))
    if on_version is not None:
        on_version(version)
    await ListWatch(
        api,
        f"/apis/{GROUP}/{version}/resourceslices",
        ResourceSlice,
        clock=clock,
        on_sync=sync,
        on_change=change,
        on_error=on_error,
        on_heard=on_heard,
        params={"fieldSelector": f"spec.nodeName={node}"},
        first_wait_seconds=first_wait_seconds,
    ).run()
