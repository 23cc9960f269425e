"""Which residual streams and heads of transformers models rotate: the second pass of the tracer on tiny models.

    python tests/coverage/symmetry_table.py docs/results/symmetries.json gpt2 llama

Without types it takes those that are used most. Models with a tied head are traced untied as well, where more rotates.
Results that the file holds already, of other types, stay.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import alignkit
from alignkit import SymmetryGraph
from alignkit.graph import Untie
from zoo_models import build_transformers, class_names

TYPES = """
    gpt2 gpt_neo gpt_neox gptj opt bloom falcon mpt codegen gpt_bigcode starcoder2 llama mistral qwen2 qwen3 gemma
    gemma2 gemma3_text phi phi3 cohere glm olmo olmo2 stablelm granite nemotron persimmon mixtral qwen2_moe bert roberta
    distilbert electra modernbert deberta-v2 t5 bart whisper wav2vec2 hubert vit deit beit dinov2 swin convnext
"""
SECONDS = 120
"""Limit for a model."""


def facts(graph: SymmetryGraph) -> dict[str, Any]:
    """Return what rotates in a graph: the residual stream, the space that acts on most tensors, and heads."""
    spaces = {limit.group: limit for limit in graph.provenance.limits}
    roots = [name for name in spaces if name in graph.groups and graph.groups[name].parent is None]
    residual = max(roots, key=lambda name: len(graph.tensors_of(name)), default="")
    inner = [limit.kind for name, limit in spaces.items() if name != residual]
    within = Counter(kind for kind in inner if kind not in ("permutation", "signed"))
    return {
        "residual": spaces[residual].kind if residual else "",
        "reason": spaces[residual].reason if residual else "",
        "heads": dict(within),
        "folds": len(graph.folds),
        "balances": len(graph.balances),
        "dimension": graph.dimension,
        "proved": graph.provenance.proved,
    }


def measure(kind: str) -> Mapping[str, Any]:
    """Trace a tiny model of a type, tied and untied."""
    model, inputs = build_transformers(kind)
    with torch.no_grad():
        names = {"outputs": "logits"} if "logits" in model(**inputs) else {}
    row: dict[str, Any] = {"class": type(model).__name__}
    start = time.process_time()
    row["as it is"] = facts(alignkit.trace(model, symmetries="all", keep_tied=True, **names, **inputs))
    row["seconds"] = round(time.process_time() - start, 1)
    free = alignkit.trace(model, symmetries="all", **names, **inputs)
    if any(isinstance(fold, Untie) for fold in free.folds):
        row["untied"] = facts(free)
    return row


def main() -> None:
    """Measure types, and write each into the file when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("types", nargs="*", default=TYPES.split())
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    known = class_names()
    for kind in arguments.types:
        rows = json.loads(arguments.file.read_text()) if arguments.file.exists() else {}
        signal.alarm(SECONDS)
        try:
            rows[kind] = measure(kind)
        except Exception as error:
            rows[kind] = {"class": known.get(kind, ""), "error": f"{type(error).__name__}: {error}"[:200]}
        finally:
            signal.alarm(0)
        print(kind, rows[kind], flush=True)
        arguments.file.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")


def _give_up(number: int, frame: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, _give_up)
    main()
