"""`alignkit align-many`."""

from __future__ import annotations

from pathlib import Path

import torch

from alignkit import read_weights
from helpers.command_line import run
from helpers.weight_files import GIVEN, JOBS, A, B, C, equal


def test_align_many_writes_every_model_in_one_order(folder: Path) -> None:
    run(*JOBS["align-many"][0], "--method", "reference")
    a = read_weights(A)
    assert equal(read_weights("out/a.safetensors"), a)
    for name in (B, C):
        assert all(torch.allclose(tensor, a[n], atol=0.1) for n, tensor in read_weights(f"out/{name}").items())
    assert "holds a.safetensors" in run(*JOBS["align-many"][0], code=2)
    for wrong in (["--reference", 3], ["--method", "best"]):
        run("align-many", A, B, "-o", "other", *GIVEN, *wrong, code=2)
    run("align-many", A, "-o", "other", *GIVEN, code=2)
    assert not (folder / "other").exists()
