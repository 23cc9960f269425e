"""Mixtures of experts as transformers builds them, in each way in which they run their experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alignkit.graph.proof.perturb import perturbed
from alignkit.tracing import trace

IDS = torch.tensor([[3, 14, 15, 9, 2, 6]])
SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
MOE = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
GROUPED: dict[str, Any] = MOE | {"num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "topk_method": "group_limited_greedy"}  # fmt: skip
# Fields of the configuration, and the path, number and width of the experts of the second layer.
MIXTURES: dict[str, tuple[dict[str, Any], str, int, int]] = {
    "Mixtral": ({"num_local_experts": 4}, "mlp.experts", 4, 40),
    "Qwen2Moe": (MOE | {"num_experts": 4, "shared_expert_intermediate_size": 16}, "mlp.experts", 4, 24),
    "Qwen3Moe": (MOE | {"num_experts": 4}, "mlp.experts", 4, 24),
    "GptOss": ({"num_local_experts": 4, "head_dim": 8}, "mlp.experts", 4, 40),
    "DeepseekV2": (GROUPED, "mlp.experts", 8, 24),
    "DeepseekV3": (GROUPED, "mlp.experts", 8, 24),
    "Jamba": ({"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 0}, "feed_forward.experts", 4, 40),
    "Olmoe": ({"num_experts": 4, "num_experts_per_tok": 2}, "mlp.experts", 4, 40),
    "GraniteMoe": ({"num_local_experts": 4}, "block_sparse_moe.experts", 4, 40),
}


def mixture(name: str, implementation: str) -> Any:
    import transformers

    fields = {"num_key_value_heads": 2} | SIZES | MIXTURES[name][0]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vocab_size=64, **fields)
    model = perturbed(getattr(transformers, f"{name}ForCausalLM")(config).eval())
    if implementation != "default":
        model.set_experts_implementation(implementation)
    return model


@pytest.mark.models("transformers")
@pytest.mark.parametrize("implementation", ["default", "batched_mm", "eager"])
@pytest.mark.parametrize("name", MIXTURES)
def test_each_expert_has_its_units_and_routers_pick_experts_in_any_order(name: str, implementation: str) -> None:
    _, path, experts, width = MIXTURES[name]
    model = mixture(name, implementation)
    graph = trace(model, IDS, outputs="logits")
    tensor = f"model.layers.1.{path}.down_proj"
    units = [group for name, group in graph.groups.items() if group.size == width and tensor in graph.tensors_of(name)]
    assert sum(graph.instances(group.name) for group in units) == experts
    # The loop of the eager way takes experts one by one: they stay.
    assert (units[0].parent is None) == (implementation == "eager")
    if units[0].parent is not None:
        assert graph.unit_count(units[0].parent) == experts
    graph.verify(model, IDS, draws=2)


@pytest.mark.models("transformers")
@pytest.mark.parametrize("implementation", ["default", "batched_mm"])
@pytest.mark.parametrize("name", ["Mixtral", "Qwen2Moe", "GptOss", "DeepseekV3"])
def test_the_stream_of_a_mixture_rotates_however_its_experts_run(name: str, implementation: str) -> None:
    graph = trace(mixture(name, implementation), IDS, outputs="logits", symmetries="all")
    assert graph.groups["model.embed_tokens"].kind == "orthogonal"
    assert graph.provenance.proved
