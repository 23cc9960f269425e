"""Jobs on networks on disk keep the limit of memory: the peak of a process of their own is measured."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import alignkit
from alignkit import Alignment, SymmetryGraph, write_weights
from alignkit.errors import FoldError, MergeError
from alignkit.graph import AxisOf, Balance, Gain, Mean

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
    "fold": "out = alignkit.fold(paths[0], graph, memory=limit).network; "
    "write_checkpoint(folder / 'm.safetensors', open_checkpoint(paths[0]), out.pieces, overwrite=True)",
    "fold in files": "(folder / 'scratch').mkdir(); "
    "out = alignkit.fold(paths[0], graph, memory=limit, scratch=folder / 'scratch').network; "
    "write_checkpoint(folder / 'm.safetensors', open_checkpoint(paths[0]), out.pieces, overwrite=True)",
    "transport": "out = alignkit.transport(graph, paths[0], paths[1], tuned=paths[2], memory=limit).network; "
    "write_checkpoint(folder / 'm.safetensors', open_checkpoint(paths[1]), out.pieces, overwrite=True)",
    "task vectors": "out = alignkit.merge(graph, *paths, method='task_arithmetic', memory=limit, solver='identity')"
    ".network; "
    "write_checkpoint(folder / 'm.safetensors', open_checkpoint(paths[0]), out.pieces, overwrite=True)",
    "merge aligned": "out = alignkit.merge(graph, *paths[:2], memory=limit).network; "
    "write_checkpoint(folder / 'm.safetensors', open_checkpoint(paths[0]), out.pieces, overwrite=True)",
}
WRITE = "write_checkpoint(folder / 'm.safetensors', open_checkpoint(paths[0]), out.pieces, overwrite=True)"
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
    """Return the bytes that a job, by its name or as code, takes at most, beyond what its process takes anyway."""
    more = f"\n{JOBS.get(job, job)}\nprint(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))"
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


@pytest.mark.parametrize("job", [job for job in JOBS if "fold" not in job])
def test_the_limit_of_memory_is_kept(folder: Path, job: str) -> None:
    assert peak_of(job, folder, LIMIT) <= LIMIT


@pytest.mark.parametrize("job", ["solve", "distance", "merge aligned", "canonicalize", "transport"])
@pytest.mark.parametrize(("mark", "limit"), [("-", 12_000_000), ("~", 136_000_000)])
def test_the_limit_of_memory_is_kept_for_other_kinds(tmp_path: Path, mark: str, limit: int, job: str) -> None:
    """Signs pass a few rows at a time; a tensor that is rotated, of 16 MB in 64 bits, is held whole."""
    write_networks(tmp_path, mark, 512, 4000)
    assert peak_of(job, tmp_path, limit) <= limit


@pytest.mark.parametrize("method", ["slerp", "ties", "dare"])
def test_the_limit_of_memory_is_kept_by_methods_that_look_at_whole_tensors(tmp_path: Path, method: str) -> None:
    write_networks(tmp_path, "", 512, 4000)
    paths = "paths[:2]" if method == "slerp" else "paths"
    graph = SymmetryGraph.from_json((tmp_path / "graph.json").read_text())
    given = [tmp_path / f"{name}.safetensors" for name in ("ab" if method == "slerp" else "abc")]
    limit = 20_000_000
    with pytest.raises(MergeError, match="MB more") as refused:
        alignkit.merge(graph, *given, method=method, memory=limit)
    limit += 1_000_000 * int(re.findall(r"Give (\d+) MB more", str(refused.value))[0])
    job = f"out = alignkit.merge(graph, *{paths}, method='{method}', memory=limit, solver='identity').network; {WRITE}"
    assert peak_of(job, tmp_path, limit) <= limit


@pytest.mark.parametrize("job", ["fold", "fold in files"])
@pytest.mark.parametrize("kind", ["scaled", "monomial", "invertible", "complex_planes"])
def test_the_limit_of_memory_is_kept_by_folds(tmp_path: Path, kind: str, job: str) -> None:
    """Six layers and a table of 16 MB each in 64 bits; one layer is rewritten at a time."""
    size, layers = 1024, 6
    mark = {"invertible": "(a:8 ~d[a])", "complex_planes": "(a:8 %d[a])"}.get(kind, "d")
    spec, shapes, balances = {"gain": ".", "table": ". ."}, {"gain": (size,), "table": (4 * size, size)}, []
    for layer in range(layers):
        group = mark.replace("a", f"a{layer}").replace("d", f"d{layer}")
        spec |= {f"{layer}.up": f"{group} .", f"{layer}.gate": "d" + str(layer) + " ." if group[0] == "d" else ". ."}
        spec[f"{layer}.down"] = f"{group} ." if kind == "complex_planes" else f". {group}"
        shapes |= {f"{layer}.{name}": (size, size) for name in ("up", "gate", "down")}
        reads = AxisOf(f"{layer}.down", 0 if kind == "complex_planes" else 1)
        balances.append(Balance(f"d{layer}", (AxisOf(f"{layer}.up", 0),), (reads,), kind))
    readers = [AxisOf(f"{layer}.{name}", 1) for layer in range(layers) for name in ("up", "gate")]
    folds = [Gain("gain", tuple(readers)), Mean((AxisOf("table", 1),))]
    graph = SymmetryGraph.from_spec(spec, shapes, folds=folds, balances=balances)
    (tmp_path / "graph.json").write_text(graph.to_json())
    write_weights(tmp_path / "a.safetensors", {name: torch.randn(shape) for name, shape in shapes.items()})
    with pytest.raises(FoldError, match="Give at least") as refused:
        alignkit.fold(tmp_path / "a.safetensors", graph, memory=1_000_000)
    least = 1_000_000 * int(str(refused.value).split()[-2])
    assert peak_of(job, tmp_path, least) <= least < 8 * 3 * layers * size**2
