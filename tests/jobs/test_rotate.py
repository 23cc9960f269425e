"""A network folded and rotated: it computes the same, and says what was rotated and what that did."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import alignkit
from alignkit import SymmetryGraph, rotate
from alignkit.errors import AlignmentError, FoldError, VerificationError
from alignkit.graph.folded import what_is_unfolded
from alignkit.jobs import Rotated
from alignkit.reports import write_report
from helpers.symmetry_nets import NETS


class Block(nn.Module):
    """Attention and a multilayer perceptron behind norms, one of two kinds."""

    def __init__(self, norm: Any, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = norm(width), norm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    def __init__(self, norm: Any, width: int = 24, heads: int = 2, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(20, width), nn.ModuleList(Block(norm, width, heads) for _ in range(2))
        self.norm, self.head = norm(width), nn.Linear(width, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def traced(norm: Any = nn.RMSNorm, seed: int = 0, **sizes: Any) -> tuple[nn.Module, Tensor, SymmetryGraph]:
    torch.manual_seed(seed)
    model, tokens = Decoder(norm, **sizes).eval(), torch.randint(20, (2, 5))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name and "weight" in name))
    return model, tokens, alignkit.trace(model, tokens, symmetries="all")


def differ(left: nn.Module, right: nn.Module, tokens: Tensor) -> float:
    with torch.no_grad():
        a, b = left.double()(tokens), right.double()(tokens)
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("way", ["hadamard", "random"])
def test_a_rotated_module_computes_the_same_and_can_be_turned_back(norm: Any, way: Any) -> None:
    model, tokens, graph = traced(norm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rotated = rotate(model, graph, tokens, residual=way, heads=way)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert rotated.check is not None and rotated.check.exact.same and rotated.check.rounded.error < 1e-5
    assert isinstance(rotated.network, nn.Module) and differ(model, rotated.network, tokens) < 1e-5
    assert {graph.groups[name].kind for name in rotated.spaces} >= {"orthogonal"}
    assert len(rotated.spaces) == sum(map(graph.rotates, graph.groups)) and set(rotated.spaces.values()) == {way}
    assert not list(what_is_unfolded(graph.folds, rotated.network.state_dict()))
    folded = alignkit.fold(model.float(), graph, balance=False).network.state_dict()
    back = rotated.rotation.inverse().apply(rotated.network.float()).state_dict()
    assert all(torch.allclose(back[name], tensor, atol=1e-5) for name, tensor in folded.items())


def test_a_hadamard_spreads_an_outlier_over_its_space() -> None:
    model, tokens, graph = traced()
    with torch.no_grad():
        model.embed.weight[:, 3] *= 100
    rotated = rotate(model, graph, tokens)
    assert rotated.peak_before > 8 and rotated.peak_after < 0.5 * rotated.peak_before
    embedding = rotated.network.state_dict()["embed.weight"]
    assert float(embedding.abs().max() / embedding.square().mean().sqrt()) < 4


@pytest.mark.parametrize(("residual", "heads"), [("hadamard", "none"), ("none", "random"), ("random", "hadamard")])
def test_only_what_is_asked_for_is_rotated(residual: Any, heads: Any) -> None:
    model, tokens, graph = traced()
    rotated = rotate(model, graph, tokens, residual=residual, heads=heads)
    inside = {balance.group for balance in graph.balances if balance.kind == "invertible"}
    assert rotated.spaces == {
        name: heads if name in inside else residual
        for name in graph.groups
        if graph.rotates(name) and (heads if name in inside else residual) != "none"
    }
    moved = {name for name, count in rotated.rotation.moved().items() if count}
    assert moved == set(rotated.spaces)


def test_seeds_decide() -> None:
    model, _, graph = traced()
    first, again, other = (rotate(model.state_dict(), graph, seed=seed).network for seed in (1, 1, 2))
    assert isinstance(first, dict) and isinstance(again, dict) and isinstance(other, dict)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


def test_dtypes_stay_and_their_rounding_is_told() -> None:
    model, tokens, graph = traced()
    rotated = rotate(model.bfloat16(), graph, tokens)
    assert {tensor.dtype for tensor in rotated.network.state_dict().values()} == {torch.bfloat16}
    assert rotated.check is not None and rotated.check.exact.error < 1e-9 < 1e-4 < rotated.check.rounded.error


def test_a_tied_head_is_untied_visibly() -> None:
    model, tokens, graph = traced(tied=True)
    rotated = rotate(model, graph, tokens)
    assert rotated.untied == {"head.weight": "embed.weight"}
    assert "head.weight is no longer tied to embed.weight: 480 numbers more." in rotated.explain()
    keeping = alignkit.trace(model, tokens, symmetries="all", keep_tied=True)
    with pytest.raises(AlignmentError, match=r"no residual stream .* rotates: .*tied to .*Leave it: residual='none'"):
        rotate(model, keeping, tokens)
    kept = rotate(model, keeping, tokens, residual="none")
    assert kept.untied == {} and differ(model, kept.network, tokens) < 1e-5


class TestRefused:
    def test_sizes_without_a_hadamard_matrix(self) -> None:
        model, tokens, graph = traced(width=18, heads=2)
        with pytest.raises(
            AlignmentError, match=r"'embed' needs .* size 18: .* near it that work are 16 and 20; random"
        ):
            rotate(model, graph, tokens, heads="none")
        assert differ(model, rotate(model, graph, tokens, residual="random", heads="random").network, tokens) < 1e-5

    def test_networks_in_which_nothing_rotates(self) -> None:
        model, inputs = NETS["relu"]()
        for how in ({}, {"heads": "none"}):
            with pytest.raises(AlignmentError, match="no residual stream"):
                rotate(model, alignkit.trace(model, inputs, symmetries="all"), **how)
        with pytest.raises(AlignmentError, match='trace it with symmetries="all"'):
            rotate(model, alignkit.trace(model, inputs))
        with pytest.raises(AlignmentError, match="no space inside heads"):
            rotate(*self.stream(), residual="none")
        with pytest.raises(AlignmentError, match="leave nothing to be rotated"):
            rotate(*self.stream(), residual="none", heads="none")

    def test_a_stream_that_is_an_output(self) -> None:
        class WithStates(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.decoder = Decoder(nn.RMSNorm)

            def forward(self, tokens: Tensor) -> dict[str, Tensor]:
                return {"logits": self.decoder(tokens), "states": self.decoder.blocks[0](self.decoder.embed(tokens))}

        model, tokens = WithStates().eval(), torch.randint(20, (2, 5))
        with pytest.raises(AlignmentError, match=r"output states of the model.*outputs= .*--outputs"):
            rotate(model, alignkit.trace(model, tokens, symmetries="all"))
        counted = alignkit.trace(model, tokens, symmetries="all", outputs="logits")
        assert "decoder.embed" in rotate(model, counted).spaces

    @staticmethod
    def stream() -> tuple[nn.Module, SymmetryGraph]:
        model, inputs = NETS["stream"]()
        return model, alignkit.trace(model, inputs, symmetries="all")

    def test_a_graph_that_is_wrong_about_a_rotation(self) -> None:
        model, tokens, graph = traced(nn.LayerNorm)
        spec = {name: text.replace("^", "~") for name, text in graph.spec().items()}
        shapes = {name: node.shape for name, node in graph.tensors.items()}
        sizes = {name: group.size for name, group in graph.groups.items()}
        rewrites = {"folds": graph.folds, "balances": graph.balances}
        wrong = SymmetryGraph.from_spec(spec, shapes, sizes=sizes, provenance=graph.provenance, **rewrites)
        with pytest.raises(VerificationError, match="wrong about what it balances or rotates"):
            rotate(model, wrong, tokens, residual="random")

    def test_weights_that_do_not_fit(self) -> None:
        model, _, graph = traced()
        with pytest.raises(FoldError, match="does not fit the graph"):
            rotate({"embed.weight": torch.zeros(2, 2)}, graph)
        with pytest.raises(FoldError, match="NaN"):
            rotate({**model.state_dict(), "norm.weight": torch.full((24,), torch.nan)}, graph)


def test_results_have_text_facts_and_a_report(tmp_path: Any) -> None:
    model, tokens, graph = traced()
    rotated = rotate(model, graph, tokens)
    assert isinstance(rotated, Rotated)
    said = rotated.explain()
    assert "embed: 1 x 24 units rotated, hadamard." in said and "Function check: outputs differ by" in said
    facts = json.loads(json.dumps(rotated.facts()))
    assert facts["function_error"] < 1e-9 and set(facts["rotated"].values()) == {"hadamard"}
    write_report(rotated.report(facts={"network": "x"}), tmp_path / "r.md")
    assert "Rotations" in (tmp_path / "r.md").read_text()
    assert replace(rotated, check=None).explain().endswith("not done, it runs the network on inputs.")
