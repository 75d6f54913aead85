"""How does the kernel wake the sampler on time?"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # system call numbers
_SLICE_NS = 100_000  # the kernel's minimum


def wake_on_time() -> None:
    """Asks the kernel, unprivileged, to wake us on time; where it cannot, ticks are only a little later.

    Timers have a slack of 50 us (PR_SET_TIMERSLACK, prctl(2)). And since Linux 6.12 a task with a shorter slice
    (sched_setattr(2), sched_runtime of SCHED_OTHER) preempts one that computes; with the default of about 3 ms, a
    parent that renders makes every fiftieth tick 2 to 5 ms late on two cores. Older kernels ignore the slice.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(29, ctypes.c_ulong(1), 0, 0, 0)
        number = _SCHED_SETATTR.get(os.uname().machine)
        if number is not None:
            nice = os.getpriority(os.PRIO_PROCESS, 0)
            # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period
            attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, nice, 0, _SLICE_NS, 0, 0)
            libc.syscall(ctypes.c_long(number), ctypes.c_int(0), attributes, ctypes.c_uint(0))
