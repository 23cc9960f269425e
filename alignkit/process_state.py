"""State of the process that code of others may change: put back when it returns, and told with its name.

Solvers, observers, trace rules, model sources, losses and loaders are such code. What they switch would change every
result after theirs, without a word::

    with watched_state("solver 'mine'"):
        outcome = solver.solve(problem, report)
"""

from __future__ import annotations

import operator
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from alignkit.errors import PluginWarning


@dataclass(frozen=True, eq=False)
class Setting:
    """One setting.

    Attributes:
        name: What messages call it.
        read: Returns it.
        write: Takes what ``read`` returned.
        same: Tells whether it is as it was, given what ``read`` returned before and after.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]
    same: Callable[[Any, Any], bool] = operator.eq


def _default_device() -> torch.device | None:
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


_left_open: list[torch.inference_mode] = []
"""What was entered to put inference mode back: it ends when the object does."""


def _set_inference_mode(mode: bool) -> None:
    _left_open.append(torch.inference_mode(mode))
    _left_open[-1].__enter__()


_TINY = 5e-324
"""The smallest number above 0. It counts as 0 where a processor flushes what is denormal."""


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _set_working_folder(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _filters() -> tuple[list[Any], int]:
    return list(warnings.filters), len(sys.modules)


def _set_filters(value: tuple[list[Any], int]) -> None:
    warnings.filters[:] = value[0]  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _same_filters(before: tuple[list[Any], int], after: tuple[list[Any], int]) -> bool:
    """Tell whether filters are the same, or a library that was imported has added some for its own warnings."""
    (old, modules_before), (new, modules_after) = before, after
    added = new[: len(new) - len(old)]
    own = modules_after > modules_before and new[len(added) :] == old
    return new == old or (
        own and all(message or module or kind is not Warning for _, message, kind, module, _ in added)
    )


def _cuda_states() -> list[torch.Tensor] | None:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]


def _set_cuda_states(states: list[torch.Tensor] | None) -> None:
    if states is not None:
        torch.cuda.set_rng_state_all(states)


def _cudnn(name: str) -> Setting:
    cudnn = torch.backends.cudnn
    return Setting(f"torch.backends.cudnn.{name}", lambda: getattr(cudnn, name), lambda on: setattr(cudnn, name, on))


def _autocast(device: str) -> Setting:
    def read() -> tuple[bool, torch.dtype]:
        return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])

    return Setting(f"torch's autocast on {device}", read, write)


OF_THREAD = (
    Setting("torch's inference mode", torch.is_inference_mode_enabled, _set_inference_mode),
    Setting("torch's grad mode", torch.is_grad_enabled, torch._C._set_grad_enabled),
    Setting("torch's default device", _default_device, torch.set_default_device),
    Setting("the flushing of denormal numbers", lambda: _TINY == 0, torch.set_flush_denormal),
    _autocast("cpu"),
    _autocast("cuda"),
)
"""Settings that each thread has for itself. Inference mode is first: entering it sets the grad mode, too."""

OF_PROCESS = (
    Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    Setting(
        "torch's deterministic algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    Setting("torch's matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    Setting("torch's anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    *map(_cudnn, ("enabled", "benchmark", "deterministic")),
    Setting("numpy's handling of errors", np.geterr, lambda value: np.seterr(**value)),
    Setting("the working folder", _working_folder, _set_working_folder),
)
"""Settings that all threads share."""

FILTERS = (Setting("the warnings filters", _filters, _set_filters, _same_filters),)
"""Shared by all threads, and kept like random states: a block of any thread that catches warnings switches them."""

RANDOM = (
    Setting("torch's random state", torch.get_rng_state, torch.set_rng_state, torch.equal),
    Setting(
        "torch's random state on GPUs",
        _cuda_states,
        _set_cuda_states,
        lambda before, after: before is None or all(map(torch.equal, before, after)),
    ),
    Setting(
        "numpy's random state",
        np.random.get_state,
        np.random.set_state,
        lambda before, after: np.array_equal(before[1], after[1]) and before[2:] == after[2:],
    ),
    Setting("python's random state", random.getstate, random.setstate),
)
"""Random states. Drawing from them is what loaders and models that are built do; a solver has a generator of its own.

They are kept in the main thread alone, and where no other thread ran code of others meanwhile: to put them back would
take random numbers back that the other drew.
"""

SWITCHES = (*OF_THREAD, *OF_PROCESS)
"""What code has to leave that draws random numbers by right and imports libraries, such as what builds a model."""

EVERYTHING = (*SWITCHES, *FILTERS, *RANDOM)
"""What a solver, an observer and a trace rule have to leave."""


class _Guards(threading.local):
    """The blocks that a thread is in, each with the settings that it met."""

    def __init__(self) -> None:
        self.blocks: list[dict[Setting, Any]] = []


_guards = _Guards()
_lock = threading.Lock()
_threads_inside = 0
_visits = 0
"""How often a thread went in."""
_met_first: dict[Setting, Any] = {}
"""Settings that all threads share, as the first thread met them: another may have switched them since."""


def switched_by(code: object) -> Sequence[Setting]:
    """Return the settings that a function or a class may change: all, and none where it is alignkit's own.

    To read them takes longer than a small product; random states alone take 0.1 ms.
    """
    return () if str(getattr(code, "__module__", "")).startswith("alignkit.") else EVERYTHING


@contextmanager
def kept_state(settings: Sequence[Setting] = EVERYTHING) -> Iterator[list[str]]:
    """Put settings back that the block changes.

    Args:
        settings: Which. Random states and warnings filters count in the main thread, while no other is in a block.

    Yields:
        A list that holds the names of what was changed, once the block has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        settings = [setting for setting in settings if setting not in (*RANDOM, *FILTERS)]
    changed: list[str] = []
    met = _enter(settings)
    visits, alone = _visits, _threads_inside == 1
    try:
        yield changed
    finally:
        _guards.blocks.pop()
        if not alone or _visits != visits:
            met = {setting: before for setting, before in met.items() if setting not in (*RANDOM, *FILTERS)}
        for setting, before in met.items():
            if not setting.same(before, setting.read()):
                setting.write(before)
                changed.append(setting.name)
        _leave()


def _enter(settings: Sequence[Setting]) -> dict[Setting, Any]:
    """Read settings at the beginning of a block: those of the process as the first thread met them."""
    global _threads_inside, _visits
    met = {setting: setting.read() for setting in settings}
    if not _guards.blocks:
        with _lock:
            if not _threads_inside:
                _met_first.clear()
            _threads_inside += 1
            _visits += 1
            shared = {setting: met[setting] for setting in OF_PROCESS if setting in met}
            met.update({setting: _met_first.setdefault(setting, value) for setting, value in shared.items()})
    _guards.blocks.append(met)
    return met


def _leave() -> None:
    global _threads_inside
    if not _guards.blocks:
        with _lock:
            _threads_inside -= 1


@contextmanager
def free_to_draw() -> Iterator[None]:
    """Let the block draw random numbers, as loaders do, though a block around it may not."""
    try:
        yield
    finally:
        for block in _guards.blocks:
            block.update({setting: setting.read() for setting in RANDOM if setting in block})


@contextmanager
def watched_state(who: str, settings: Sequence[Setting] = EVERYTHING) -> Iterator[None]:
    """Put settings back that the block changes, and warn with the name of whose code it runs."""
    changed: list[str] = []
    try:
        with kept_state(settings) as changed:
            yield
    finally:
        warn_of_changes(who, changed)


def warn_of_changes(who: str, changed: Sequence[str]) -> None:
    """Warn that code of others changed the state of the process, if it did; ``who`` names it."""
    if changed:
        what = " and ".join((", ".join(changed[:-1]), changed[-1])) if len(changed) > 1 else changed[0]
        warnings.warn(f"{who} changed {what}, and left it so. alignkit put it back.", PluginWarning, stacklevel=3)
