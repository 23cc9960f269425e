"""What the configurations beside weights say about what they compute, and how two of them differ."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.arguments import check_arguments
from alignkit.errors import ModelSourceError
from alignkit.models.building import read_config
from alignkit.models.diffusers import diffusers_fields
from alignkit.models.limits import fields_of
from alignkit.models.timm import timm_fields
from alignkit.models.transformers import transformers_fields
from alignkit.rewriting.modules import TIES
from alignkit.text import list_some, show_value

FIELDS_OF = {"transformers": transformers_fields, "diffusers": diffusers_fields, "timm": timm_fields}
"""For each library, what returns all fields of a configuration, with the defaults of those that are not given."""

NO_MATTER = re.compile(
    # Where the weights come from, and which program wrote them.
    r"^(transformers_version|_diffusers_version|_commit_hash|_name_or_path|tokenizer_class|processor_class|_?unsloth.*)$"
    # How they are first drawn, and what holds in training only; the dropout of tokens in ESM scales inputs always.
    r"|(?<!token_)dropout|drop_path|layerdrop|_pdrop$|drop_rate|^init(ializer)?_|_initializer|_init_|_loss_coef$"
    r"|^(gradient_checkpointing|label_smoothing|ctc_.*|mask_(time|feature)_.*|apply_spec_augment)$"
    # What is given back beside the outputs, and how text is drawn from them.
    r"|^(use_cache|return_dict|torchscript|output_(hidden_states|attentions|router_logits)|problem_type|pretraining_tp)$"
    r"|^(task_specific_params|do_sample|num_beams|early_stopping|num_return_sequences)$"
)
"""Names of fields that change nothing that the weights compute. Every other field counts."""
TOLD = re.compile(r"^(id2label|label2id|label_names|label_descriptions|labels)(\.|$)|^(mean|std|input_size)$")
"""Names of fields that change what inputs and outputs mean, and not how these follow from those."""
TOKENS = re.compile(r"^(bos|eos|sep|pad|decoder_start|forced_(bos|eos))_token_id$")
"""Ids of tokens that end and begin texts. Models that write do not look at them; others may count or pool by them."""
DTYPE_FIELDS = ("dtype", "torch_dtype")
"""Names of fields that say what dtype the weights have."""
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""Endings of the names of classes that write text."""


@check_arguments
def edited_config(path: Path, *, untied: bool = False, dtype: str | None = None) -> str:
    """Return the text of a ``config.json`` for other weights.

    Args:
        path: The file.
        untied: Whether the head is no longer tied to the embedding.
        dtype: Name of the dtype of the weights, for the fields that say one. None: they stay.
    """
    content = read_config(path)
    for part in (content, *(part for part in content.values() if isinstance(part, dict))):
        if untied and (part is content or TIES in part):
            part[TIES] = False
        part |= {} if dtype is None else dict.fromkeys((field for field in DTYPE_FIELDS if part.get(field)), dtype)
    return json.dumps(content, indent=2) + "\n"


@dataclass(frozen=True)
class Configuration:
    """Every field of a configuration that may change a function, by its dotted name, with defaults filled in.

    Attributes:
        path: The file.
        model: Name of its model, as `alignkit.models.load_model` takes it.
        fields: Names and values.
    """

    path: Path
    model: str
    fields: Mapping[str, Any]

    @classmethod
    def read(cls, model: str) -> Configuration:
        """Read the configuration of a model named ``SOURCE:PATH``, as `alignkit.models.source_of` names it.

        Raises:
            ModelSourceError: Its library does not accept it, or it says that the weights are quantised.
        """
        source, _, name = model.partition(":")
        path, content = Path(name), read_config(Path(name))
        for field, value in fields_of(content, name, whole=("quantization_config",)):
            if field.rpartition(".")[2] == "quantization_config" and value:
                raise ModelSourceError(
                    f"{path}: {field} says that the weights are quantised. What they stand for depends on scales that "
                    "no graph knows: save the network dequantised."
                )
        every = dict(fields_of(FIELDS_OF[source](content, model), name))
        return cls(path, model, {field: value for field, value in every.items() if not _matches(NO_MATTER, field)})

    @property
    def ties(self) -> bool:
        """Whether a head is the embedding; parts of a model may say it for themselves."""
        return any(says_ties(field) and value is True for field, value in self.fields.items())

    def differences(self, other: Configuration) -> dict[str, tuple[Any, Any]]:
        """Return the fields that differ, with the values of both; None for a field that is not there."""
        if self.model.partition(":")[0] != other.model.partition(":")[0]:
            return {"library": (self.model.partition(":")[0], other.model.partition(":")[0])}
        names = dict.fromkeys((*self.fields, *other.fields))
        both = {name: (self.fields.get(name), other.fields.get(name)) for name in names}
        return {name: (mine, theirs) for name, (mine, theirs) in both.items() if mine != theirs}

    def is_told(self, field: str, values: tuple[Any, Any]) -> bool:
        """Say whether a field that differs is only told: it does not change the function.

        Some models count positions from the padding, also such that write; without padding there is nothing to count.
        """
        if field.rpartition(".")[2] == "pad_token_id" and None not in values:
            return False
        writes = any(str(name).endswith(WRITERS) for name in self.fields.get("architectures") or ())
        return _matches(TOLD, field) or (writes and _matches(TOKENS, field))


@check_arguments
def list_differences(differences: Mapping[str, tuple[Any, Any]], names: tuple[str, str], most: int = 8) -> str:
    """Write differing fields with their values: ``rope_theta (10000.0 in a, 500000.0 in b)``."""
    parts = [
        f"{field} ({show_value(mine)} in {names[0]}, {show_value(theirs)} in {names[1]})"
        for field, (mine, theirs) in differences.items()
    ]
    return list_some(parts, most)


@check_arguments
def says_ties(field: str) -> bool:
    """Tell whether a field, by its dotted name, says that a head is the embedding."""
    return field.rpartition(".")[2] == TIES


def _matches(pattern: re.Pattern[str], field: str) -> bool:
    """Look for a pattern in the name of a field and in those of what it stands in."""
    steps = field.split(".")
    return any(pattern.search(step) for step in steps)
