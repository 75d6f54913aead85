"""What does a ResourceSlice say of its devices? The few facts that are read, flat, what is alike on all devices once.

A decoded slice of eight devices is some twenty kilobytes of small objects; it is not kept.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from claimscope.claims.model import DeviceFacts, DeviceKey, PoolKey, Version
from claimscope.kube.objects import AttributeValue, Capacity, DeviceSpec, ResourceSlice


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSlice:
    """One slice, flattened."""

    pool: PoolKey
    generation: int
    expected: int  # slices of the pool
    devices: tuple[DeviceFacts, ...]
    counters: Mapping[str, Mapping[str, str]]


# Models and versions of drivers are the same on thousands of devices; serial numbers are not, and soon pushed out.
_version = lru_cache(maxsize=4096)(Version)
_word = lru_cache(maxsize=4096)(str)
_decode_capacity = lru_cache(maxsize=4096)(msgspec.json.Decoder(dict[str, Capacity]).decode)
_encode = msgspec.json.Encoder().encode


def flatten(published: ResourceSlice) -> PublishedSlice:
    """The facts of a slice."""
    spec = published.spec
    pool = PoolKey(sys.intern(spec.driver), sys.intern(spec.pool.name))
    return PublishedSlice(
        pool=pool,
        generation=spec.pool.generation,
        expected=spec.pool.resource_slice_count,
        devices=tuple([_device(pool, published, device) for device in spec.devices or ()]),
        counters={
            counter_set.name: {name: counter.value for name, counter in (counter_set.counters or {}).items()}
            for counter_set in spec.shared_counters or ()
        },
    )


def _device(pool: PoolKey, published: ResourceSlice, device: DeviceSpec) -> DeviceFacts:
    spec = published.spec
    own = device if spec.per_device_node_selection else spec
    attributes: dict[str, AttributeValue] = {}
    raw = {**((device.basic.attributes if device.basic else None) or {}), **(device.attributes or {})}
    for name, attribute in raw.items():
        value = _version(attribute.version) if attribute.version is not None else attribute.value()
        if value is not None:
            attributes[sys.intern(name)] = _word(value) if type(value) is str else value
    return DeviceFacts(
        key=DeviceKey(pool.driver, pool.pool, sys.intern(device.name)),
        node=sys.intern(own.node_name) if own.node_name else None,
        node_selector=own.node_selector,
        all_nodes=bool(own.all_nodes),
        attributes=attributes,
        capacity=_decode_capacity(_encode(device.capacity)) if device.capacity else {},
        consumes=tuple(device.consumes_counters or ()),
        taints=tuple(device.taints or ()),
        binding_conditions=tuple(device.binding_conditions or ()),
        shared=bool(device.allow_multiple_allocations),
    )
