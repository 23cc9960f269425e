"""Sizes that a configuration asks for: refused by name before they take memory or time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from alignkit.errors import ModelSourceError, UsageError
from alignkit.models import limits, load_model, source_of
from alignkit.models.building import build_alone
from helpers.hostile_configurations import TOO_MUCH, llama

CASES = [
    pytest.param(library, content, said, id=f"{library}-{number}", marks=pytest.mark.models(library))
    for library, contents in TOO_MUCH.items()
    for number, (content, said) in enumerate(contents)
]


@pytest.mark.parametrize(("library", "content", "said"), CASES)
def test_sizes_that_no_model_has_are_refused_by_name(
    library: str, content: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[nn.Module] = []
    register = nn.Module.register_module
    monkeypatch.setattr(nn.Module, "register_module", lambda self, *a: built.append(self) or register(self, *a))
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelSourceError, match=said):
        load_model(f"{library}:{tmp_path}", bare=True)
    assert len(built) < 1000


GIANTS = {
    "405B": llama(hidden_size=16384, num_attention_heads=128, num_hidden_layers=126, intermediate_size=53248),
    "deepseek": {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]},
    "long": llama(max_position_embeddings=10_485_760, vocab_size=1_000_000),
    "many layers": llama(num_hidden_layers=300),
    "infinite float": {"model_type": "mamba2", "time_step_limit": [0.0, float("inf")], "num_hidden_layers": 1},
}


@pytest.mark.models("transformers")
@pytest.mark.parametrize("name", GIANTS)
def test_the_largest_real_models_are_built_without_weights(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GIANTS[name]))
    model = load_model(f"transformers:{tmp_path}", bare=True)[0]
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_model_of_too_many_modules_is_stopped_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_MODULES", 100)
    with pytest.raises(ModelSourceError, match="mine could not be built: it has more than 100 modules"):
        build_alone("mine", lambda: nn.Sequential(*(nn.Sequential(nn.ReLU()) for _ in range(10**7))))
    assert len(build_alone("mine", lambda: nn.Sequential(*(nn.ReLU() for _ in range(99))))) == 99


NO_CONFIGURATION = {
    "nested": ('{"a":' * 200 + "1" + "}" * 200, "nested more than"),
    "very nested": ('{"a":' * 100_000 + "1" + "}" * 100_000, "is not the JSON"),
    "nested lists": ('{"a":' + "[" * 200 + "]" * 200 + "}", "nested more than"),
    "large": (json.dumps({"a": "x" * 10_000_001}), "more than 10 MB"),
    "list": ("[]", "is not one JSON object"),
    "bytes": ("\x00", "is not the JSON"),
}


@pytest.mark.models("transformers")
@pytest.mark.parametrize("case", NO_CONFIGURATION)
def test_files_that_are_not_a_configuration(case: str, tmp_path: Path) -> None:
    text, said = NO_CONFIGURATION[case]
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelSourceError, match=said):
        load_model(f"transformers:{tmp_path}")
    with pytest.raises(ModelSourceError, match=said):
        source_of(tmp_path / "config.json")


@pytest.mark.models("transformers")
def test_a_pipe_is_not_a_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UsageError, match="cannot be read"):
        load_model(f"transformers:{tmp_path}")
