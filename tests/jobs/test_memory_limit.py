"""Jobs on networks on disk keep the limit of memory: the peak of a process of their own is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alignkit import Alignment, SymmetryGraph, write_weights

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the peak is that of Linux")]
LIMIT, UNITS, INPUTS = 40_000_000, 1024, 8000
"""Bytes; two square matrices of the units take 16.8 MB of them, and a network 73 MB."""
JOBS = {
    "solve": "alignkit.solve(graph.bind(*paths[:2], memory=limit))",
    "restarts": "alignkit.solve(graph.bind(*paths[:2], memory=limit), restarts=1, products='float64')",
    "distance": "alignkit.distance(graph.bind(*paths[:2], memory=limit))",
    "align_many": "alignkit.align_many(graph, *paths, memory=limit, max_sweeps=1)",
    "canonicalize": "alignkit.canonicalize(graph, paths[1:], paths[0], memory=limit)",
    "merge": "out = alignkit.merge(graph, *paths, memory=limit, solver='identity').network; "
    "write_checkpoint(folder / 'm.safetensors', open_checkpoint(paths[0]), out.pieces, overwrite=True)",
    "merge aligned": "out = alignkit.merge(graph, *paths[:2], memory=limit).network; "
    "write_checkpoint(folder / 'm.safetensors', open_checkpoint(paths[0]), out.pieces, overwrite=True)",
}
SCRIPT = """
import resource, sys
from pathlib import Path
import torch
import alignkit, alignkit.jobs, alignkit.solvers.weight_matching, alignkit.checkpoints
from alignkit.checkpoints import open_checkpoint, write_checkpoint
torch.set_num_threads(1)
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
paths = [folder / f"{name}.safetensors" for name in "abc"]
graph = alignkit.SymmetryGraph.from_json((folder / "graph.json").read_text())
tiny = alignkit.SymmetryGraph.from_spec({"a": "h .", "b": ". h"}, {"a": (4, 3), "b": (3, 4)})
weights = [{"a": torch.randn(4, 3), "b": torch.randn(3, 4)} for _ in range(3)]
alignkit.align_many(tiny, *weights)
torch.randn(900, 900) @ torch.randn(900, 900)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""


def write_networks(folder: Path, mark: str, units: int, inputs: int) -> None:
    """Write three networks and their graph, in which a mark says the kind of a group."""
    h = f"{mark}h"
    spec = {"embed": f". {h}", "up": f"m {h}", "bias": "m", "down": f"{h} m", "head": f". {h}"}
    shapes = {"embed": (inputs, units), "up": (units, units), "bias": (units,), "down": (units, units)}
    generator = torch.Generator().manual_seed(0)
    a = {name: torch.randn(shape, generator=generator) for name, shape in {**shapes, "head": (inputs, units)}.items()}
    graph = SymmetryGraph.from_spec(spec, a)
    (folder / "graph.json").write_text(graph.to_json())
    write_weights(folder / "a.safetensors", a)
    for seed, name in enumerate("bc"):
        moved = Alignment.random(graph, seed).apply(a)
        write_weights(folder / f"{name}.safetensors", {n: t + 0.5 * torch.randn(t.shape) for n, t in moved.items()})


def peak_of(job: str, folder: Path, limit: int) -> int:
    """Return the bytes that a job takes at most, beyond what its process takes anyway."""
    more = f"\n{JOBS[job]}\nprint(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))"
    command = [sys.executable, "-c", SCRIPT + more, str(folder), str(limit)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout.split()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three networks, each larger than the limit."""
    here = tmp_path_factory.mktemp("networks")
    write_networks(here, "", UNITS, INPUTS)
    return here


@pytest.mark.parametrize("job", JOBS)
def test_the_limit_of_memory_is_kept(folder: Path, job: str) -> None:
    assert peak_of(job, folder, LIMIT) <= LIMIT


@pytest.mark.parametrize("job", ["solve", "distance", "merge aligned", "canonicalize"])
@pytest.mark.parametrize(("mark", "limit"), [("-", 12_000_000), ("~", 136_000_000)])
def test_the_limit_of_memory_is_kept_for_other_kinds(tmp_path: Path, mark: str, limit: int, job: str) -> None:
    """Signs pass a few rows at a time; a tensor that is rotated, of 16 MB in 64 bits, is held whole."""
    write_networks(tmp_path, mark, 512, 4000)
    assert peak_of(job, tmp_path, limit) <= limit
