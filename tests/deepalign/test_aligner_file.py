"""Files of aligners: they come back as they were, and others are refused."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from alignkit.deepalign import load_aligner, read_card, save_aligner
from alignkit.errors import WeightsError
from helpers.aligner_inputs import encoder
from helpers.documents import rewritten


def test_files_come_back_as_they_were(tmp_path):
    aligner = encoder(2)
    path = tmp_path / "aligner.safetensors"
    save_aligner(path, aligner, {"limits": "small"})
    loaded = load_aligner(path)
    assert loaded.fingerprint == aligner.fingerprint
    assert read_card(path) == {"limits": "small"}
    with torch.no_grad():
        aligner.learned += 1
    assert loaded.fingerprint != aligner.fingerprint


def test_reading_leaves_the_random_state(tmp_path):
    save_aligner(tmp_path / "aligner.safetensors", encoder(2))
    before = torch.get_rng_state()
    load_aligner(tmp_path / "aligner.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h, t: h.update(encoder="lerned"), "did you mean"),
        (lambda h, t: h.update(version=99), "newer release"),
        (lambda h, t: h["settings"].update(channels=5), "do not fit"),
        (lambda h, t: t.pop("mix"), "do not fit"),
        (lambda h, t: t["mix"].fill_(float("nan")), "NaN"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, said):
    path = tmp_path / "aligner.safetensors"
    save_aligner(path, encoder(0))
    rewritten(path, change)
    with pytest.raises(WeightsError, match=f"(?i){said}"):
        load_aligner(path)


def test_what_is_no_aligner_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read as an aligner: No such file"):
        load_aligner(tmp_path / "missing.safetensors")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="not an aligner"):
        load_aligner(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_aligner(tmp_path / "text.safetensors")
