"""Peak memory of a piece of work, as well as the machine can tell."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from alignkit.arguments import check_arguments, usable_device

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to ``clear_refs``, it makes the high-water mark of the resident set start anew (proc(5))."""

_lock = threading.Lock()
_running: set[MemoryReading] = set()


@dataclass(eq=False)
class MemoryReading:
    """Filled in when the block of `peak_memory` ends: the peak in bytes above what was in use when the block began.

    It is None where it cannot be told, also if the block was not ``alone``: another ran in this process meanwhile.
    """

    peak: int | None = None
    alone: bool = True


@contextmanager
@check_arguments
def peak_memory(device: torch.device | str = "cpu") -> Iterator[MemoryReading]:
    """Measure how far the memory in use rises inside the block.

    On CUDA: the largest sum of allocated tensors of the device (``torch.cuda.max_memory_allocated``), less what was
    allocated before. On the CPU, under Linux: the largest resident set of this process, less the resident set before;
    memory that the allocator kept from earlier work and uses again is not seen, so small numbers are lower bounds.
    Elsewhere: unknown.
    """
    device, reading = usable_device(device), MemoryReading()
    with _lock:
        for other in _running:
            other.alone = reading.alone = False
        _running.add(reading)
        before = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        elif device.type == "cpu":
            with suppress(OSError):  # where there is no such mark, the peak stays unknown
                CLEAR.write_text(RESET_PEAK)
                before = _status("VmRSS")
    try:
        yield reading
    finally:
        with _lock:
            _running.discard(reading)
            if reading.alone and before is not None:
                peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")
                reading.peak = max(0, peak - before)


def _status(field: str) -> int:
    """Return a field of the process status in bytes; the kernel gives kB of 1024 bytes."""
    line = re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if line is None:
        raise OSError(f"{STATUS} has no {field}")
    return 1024 * int(line[1])
