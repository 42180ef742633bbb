"""The most memory that a process has held so far, as far as a machine tells."""

import resource
import sys

import jax

PROCESS, DEVICE = "process", "device"
# What getrusage counts in: kilobytes, but bytes on macOS.
_UNIT = 1 if sys.platform == "darwin" else 1024


def peak() -> tuple[int, str]:
    """Bytes, and whose: the fullest device's of this process, or the process's own.

    Accelerators tell what their arrays took at most. CPUs do not: there it is the
    resident set of the whole process, libraries and pictures included.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    held = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    if held:
        return max(held), DEVICE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT, PROCESS
