"""Traces of models in libraries are what was derived by hand. The coverage run says so for more of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from alignkit.tracing import trace
from helpers.nets_by_hand.net import derived, difference

sys.path.insert(0, str(Path(__file__).parent))

MODELS = {
    "torchvision": ("resnet18", "resnext50_32x4d", "densenet121", "squeezenet1_1", "mobilenet_v3_small", "mnasnet0_5",
                    "efficientnet_b0", "convnext_tiny", "swin_t"),
    "transformers": ("bert", "roberta", "distilbert", "gpt2", "gpt_neo", "opt", "gptj", "gpt_neox", "llama", "qwen3",
                     "olmo2", "phi3", "vit", "deit", "dinov2"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "name"),
    [
        pytest.param(source, name, marks=pytest.mark.models(source), id=name)
        for source, names in MODELS.items()
        for name in names
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_trace_is_what_was_derived_by_hand(source: str, name: str) -> None:
    import by_hand
    import zoo_models

    model, args, kwargs = zoo_models.build(source, name)
    lines = by_hand.lines_for(source, name, model)
    assert lines is not None
    found = difference(derived(model, lines), trace(model, *args, **kwargs))
    assert not found, found
