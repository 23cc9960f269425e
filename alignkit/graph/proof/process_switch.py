"""Switches of the whole process that models run without, in any number of threads at once."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class ProcessSwitch:
    """A setting of the process, changed while any thread is in `held` and put back when the last one leaves.

    Were each thread to put back what it met, the first to leave would change the setting under the others, and the last
    would leave it changed for good.

    Args:
        read: Returns the setting.
        write: Takes a setting.
        value: What holds while a thread is inside.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None], value: Any) -> None:
        self._read, self._write, self._value = read, write, value
        self._lock, self._inside, self._before = threading.Lock(), 0, None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Run the block with the setting changed."""
        with self._lock:
            if not self._inside:
                self._before = self._read()
                self._write(self._value)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._write(self._before)


_fake_tensor_log = logging.getLogger("torch._subclasses.fake_tensor")

NO_FUSED_ATTENTION = ProcessSwitch(
    torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, False
)
"""Fused paths of attention and encoder layers skip the hooks of the modules inside."""

NO_MKLDNN = ProcessSwitch(torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled, False)
"""Its ops hide what they compute from a trace."""


def _read_stance() -> Any:
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return compiler and compiler._stance


def _write_stance(stance: Any) -> None:
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    if compiler and stance:
        compiler._set_stance(compiler.DynamoStance(stance) if isinstance(stance, str) else stance)


NO_COMPILATION = ProcessSwitch(_read_stance, _write_stance, "force_eager")
"""What was compiled runs as it is written: compiled kernels read the memory of fake tensors, which have none."""

NO_FAKE_TENSOR_LOG = ProcessSwitch(lambda: _fake_tensor_log.level, _fake_tensor_log.setLevel, logging.CRITICAL + 1)
"""Fake tensors log what they refuse, which is no news where real tensors are tried next."""
