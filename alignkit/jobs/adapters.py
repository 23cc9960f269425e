"""LoRA adapters as peft stores them: a folder with ``adapter_config.json`` and the factors of each adapted weight.

An adapted weight is ``W + scale * B A`` (Hu et al., "LoRA: low-rank adaptation of large language models", 2021).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.folder import CARD, RUN_RECORD
from alignkit.checkpoints.opening import read_file
from alignkit.checkpoints.staging import staged
from alignkit.checkpoints.weights import read_weights, write_weights
from alignkit.errors import MergeError
from alignkit.graph import SymmetryGraph
from alignkit.jobs.record import Record
from alignkit.text import did_you_mean, list_some

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BASE_NAME = "base_model_name_or_path"
"""The field of the configuration that says which base is loaded with the adapter."""
PREFIX = "base_model.model."
"""What peft puts in front of the names of the base's modules."""
BASE_WEIGHT = ".base_layer.weight"
"""The end of the name of a weight of the base, which peft saves beside the factors of an embedding."""
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.(?P<kind>weight|bias))?")


@dataclass(frozen=True)
class Factors:
    """Names of the tensors of one adapted weight: ``a`` reads its input, ``b`` writes its output, ``bias`` as well."""

    module: str
    a: str
    b: str
    bias: str
    is_embedding: bool


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter: its configuration, and its tensors under the names of peft.

    Raises:
        MergeError: It is an adapter of another kind, or holds tensors that are not factors.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    label: str = "the adapter"
    factors: Mapping[str, Factors] = field(init=False)

    def __post_init__(self) -> None:
        kind = self.config.get("peft_type")
        if kind != "LORA":
            raise MergeError(f"{self.label} is of type {kind}, and only LORA is known here.")
        for key, why in (
            ("use_dora", "it scales weights by the length of their rows, which is no linear change"),
            ("layer_replication", "its layers are not those of the base"),
        ):
            if self.config.get(key):
                raise MergeError(f"{self.label} has {key}: {why}.")
        parts: dict[str, dict[str, str]] = {}
        strangers = []
        for name in self.tensors:
            named = _FACTOR.fullmatch(name)
            if named is None:
                if not name.endswith(BASE_WEIGHT):
                    strangers.append(name)
                continue
            side = "bias" if named["kind"] == "bias" else named["side"]
            parts.setdefault(named["module"], {"embedding": named["embedding"] or ""})[side] = name
        if strangers:
            held = f"{self.label} holds tensors that are not factors of LoRA: {list_some(sorted(strangers), 5)}"
            raise MergeError(
                f"{held}. Whole modules and biases that were trained beside it are carried as a fine-tune."
            )
        factors = {}
        for module, found in parts.items():
            if not {"A", "B"} <= found.keys():
                raise MergeError(f"{self.label} has only one factor of {module!r}.")
            bias = found.get("bias", found["B"].removesuffix("weight") + "bias")
            factors[module] = Factors(
                module.removeprefix(PREFIX), found["A"], found["B"], bias, bool(found["embedding"])
            )
        if not factors:
            raise MergeError(f"{self.label} holds no factors of LoRA.")
        object.__setattr__(self, "factors", factors)

    @staticmethod
    @check_arguments
    def is_at(path: str | Path) -> bool:
        """Tell whether a path is a folder with an adapter of peft."""
        return os.path.isfile(Path(path) / CONFIG)

    @classmethod
    @check_arguments
    def read(cls, folder: str | Path) -> Adapter:
        """Read an adapter from its folder; peft is not needed.

        Raises:
            MergeError: It is not a folder of an adapter of LoRA.
            WeightsError: Its weights cannot be read.
        """
        folder = Path(folder)
        try:
            config = json.loads(read_file(folder / CONFIG))
        except OSError as error:
            raise MergeError(f"{folder} is not an adapter: {CONFIG} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise MergeError(f"{folder / CONFIG} is not JSON: {error}.") from error
        if not isinstance(config, dict):
            raise MergeError(f"{folder / CONFIG} does not hold one JSON object.")
        files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
        if not files:
            raise MergeError(f"{folder} holds no {' and no '.join(WEIGHTS)}.")
        return cls(config, read_weights(files[0]), str(folder))

    @check_arguments
    def write(
        self, folder: str | Path, *, overwrite: bool = False, record: Record | None = None, card: str | None = None
    ) -> None:
        """Write a folder that peft loads, whole or not at all; a ``record`` and a model ``card`` say what made it.

        Raises:
            WeightsError: It cannot be written, exists, or holds other files.
        """
        replaces = {Path(name) for name in (CONFIG, RUN_RECORD, CARD, *WEIGHTS)}
        with staged(Path(folder), folder=True, overwrite=overwrite, replaces=replaces) as temporary:
            text = json.dumps(dict(self.config), indent=2, sort_keys=True)
            (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
            header = {} if record is None else record.header
            write_weights(temporary / WEIGHTS[0], self.tensors, {"format": "pt", **header})
            if record is not None:
                (temporary / RUN_RECORD).write_text(record.to_json(), encoding="utf-8")
            if card is not None:
                (temporary / CARD).write_text(card, encoding="utf-8")

    @property
    def base_weights(self) -> list[str]:
        """Names of weights of the base that were saved beside the factors of embeddings."""
        return [name for name in self.tensors if name.endswith(BASE_WEIGHT)]

    @check_arguments
    def on_base(self, name: str | None) -> Adapter:
        """Return the same adapter, whose configuration names another base."""
        return Adapter({**self.config, BASE_NAME: name}, self.tensors, self.label)

    def rank(self, module: str) -> int:
        """Return the rank of one adapted weight."""
        return int(self.tensors[self.factors[module].a].shape[0])

    def scale(self, module: str) -> float:
        """Return what the product of the factors of one weight is multiplied by, as peft does."""
        alpha = _of_pattern(self.config.get("alpha_pattern"), self.factors[module].module)
        alpha = self.config.get("lora_alpha", 8) if alpha is None else alpha
        rank = self.rank(module)
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def product(self, module: str) -> Tensor:
        """Return what is added to one weight, ``[outputs, inputs]``, in float64."""
        a, b = self.matrices(module)
        return b @ a

    def matrices(self, module: str) -> tuple[Tensor, Tensor]:
        """Return both factors of one weight as float64 matrices, ``[rank, inputs]`` and ``[outputs, rank]``.

        The scale is in both, so that their product is what is added to the weight.
        """
        names, root = self.factors[module], math.sqrt(abs(self.scale(module)))
        sign = math.copysign(1.0, self.scale(module))
        a, b = (self.tensors[name].detach().cpu().double().flatten(1) for name in (names.a, names.b))
        return root * a, sign * root * b

    @cached_property
    def is_transposed(self) -> bool:
        """Whether weights of the base are stored as ``[inputs, outputs]``, as those of GPT-2."""
        return bool(self.config.get("fan_in_fan_out"))

    def first_name(self, module: str, graph: SymmetryGraph) -> str:
        """Return the weight of a module in a graph, by first name; raise `MergeError` where there is not one."""
        weight = f"{module.removeprefix(PREFIX)}.weight"
        endings = [n for n in graph.first_names if n.endswith(f".{weight}") or weight.endswith(f".{n}")]
        found = [weight] if weight in graph.first_names else endings
        if len(found) != 1:
            problem = f"{self.label} adapts {weight!r}, which the network has {'several times' if found else 'not'}"
            raise MergeError(f"{problem}.{did_you_mean(weight, graph.first_names)}")
        return graph.first_names[found[0]]

    def places(self, module: str, graph: SymmetryGraph) -> tuple[str, int, int]:
        """Return the adapted weight of the graph, by first name, its axis of inputs and that of outputs.

        Raises:
            MergeError: The graph has no such weight, or its shape is another one.
        """
        names = self.factors[module]
        first = self.first_name(module, graph)
        shape = graph.tensors[first].shape
        a, b = self.tensors[names.a].shape, self.tensors[names.b].shape
        turned = shape[:2] == (a[1], b[0])
        if shape[:2] != (b[0], a[1]) and not turned:
            raise MergeError(f"{self.label}: factors {tuple(b)} and {tuple(a)} do not fit {first!r} of shape {shape}.")
        if a[1] == b[0]:
            turned = names.is_embedding or self.is_transposed
        return (first, 0, 1) if turned else (first, 1, 0)


def _of_pattern(pattern: Mapping[str, Any] | None, module: str) -> Any:
    """Return what a pattern of peft says of a module; None where it says nothing."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return None


def zeros_like_output(factor: Tensor) -> Tensor:
    """Return a bias of zeros for a factor that writes."""
    return torch.zeros(factor.shape[0], dtype=factor.dtype, device=factor.device)
