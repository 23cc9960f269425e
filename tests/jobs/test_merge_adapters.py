"""Averages of LoRA adapters do not depend on the matrix between their factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignkit import merge_adapters
from alignkit.errors import MergeError
from alignkit.jobs import Adapter
from alignkit.reports import write_report
from helpers.adapters import random_adapter

METHODS = ["products", "factors"]


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(20, 7), nn.Linear(7, 4)).double()


def with_other_factors(adapter: Adapter, seed: int) -> Adapter:
    """The same adapter, an invertible matrix between the factors of each weight."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(adapter.tensors)
    for module, names in adapter.factors.items():
        rank = adapter.rank(module)
        between = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
        a, b = tensors[names.a], tensors[names.b]
        tensors[names.a] = (between @ a.flatten(1)).reshape(a.shape)
        tensors[names.b] = (b.flatten(1) @ torch.linalg.inv(between)).reshape(b.shape)
    return replace_tensors(adapter, tensors)


def replace_tensors(adapter: Adapter, tensors: dict[str, Tensor], **config: Any) -> Adapter:
    return Adapter({**adapter.config, **config}, tensors, adapter.label)


def close(left: Adapter, right: Adapter, tolerance: float = 1e-9) -> bool:
    return all(
        bool((left.product(m) - right.product(m)).norm() <= tolerance * right.product(m).norm()) for m in left.factors
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_matrix_between_factors_does_not_matter(method: Any) -> None:
    one, two = (random_adapter(model(), 3, seed) for seed in (1, 2))
    merged = merge_adapters([one, two], [0.25, 0.75], method)
    again = merge_adapters([with_other_factors(one, 5), with_other_factors(two, 6)], [0.25, 0.75], method)
    assert close(again.adapter, merged.adapter)
    by_hand = {name: 0.25 * tensor + 0.75 * two.tensors[name] for name, tensor in one.tensors.items()}
    assert not close(replace_tensors(one, by_hand), merged.adapter, 0.1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alphas", [(6, 6), (6, 24), (-3, 5)])
def test_an_adapter_with_itself_is_itself(method: Any, alphas: tuple[int, int]) -> None:
    """In other factors, and with another scale that the factors make up for."""
    one = random_adapter(model(), 3, 1, bias=True, lora_alpha=alphas[0])
    ratio = alphas[0] / alphas[1]
    scaled = {n: t * (ratio if "lora_B" in n else 1) for n, t in with_other_factors(one, 3).tensors.items()}
    two = replace_tensors(one, scaled, lora_alpha=alphas[1])
    merged = merge_adapters([one, two], method=method)
    assert close(merged.adapter, one)
    assert max(merged.apart.values()) < 1e-9
    assert merged.adapter.config == one.config
    biases = [names.bias for names in one.factors.values()]
    assert all(torch.allclose(merged.adapter.tensors[name], one.tensors[name]) for name in biases)


def test_products_keep_the_best_of_their_rank_and_tell_what_is_lost() -> None:
    adapters = [random_adapter(model(), rank, rank) for rank in (2, 3, 1)]
    merged = merge_adapters(adapters, [1, 1, 2])
    for module in adapters[0].factors:
        total = sum(s * a.product(module) for s, a in zip((0.25, 0.25, 0.5), adapters, strict=True))
        u, values, v = torch.linalg.svd(total, full_matrices=False)
        best = (u[:, :2] * values[:2]) @ v[:2]
        torch.testing.assert_close(merged.adapter.product(module), best, rtol=1e-9, atol=1e-10)
        lost = float((total - best).norm() / total.norm())
        assert merged.apart[module] == pytest.approx(lost)
        assert merged.adapter.rank(module) == 2
    assert "brought back to its rank" in merged.explain()
    assert merged.facts()["method"] == "products"


def test_a_rank_above_the_size_of_a_weight_stays() -> None:
    narrow = nn.Linear(3, 2).double()
    holder = nn.Sequential(narrow)
    merged = merge_adapters([random_adapter(holder, 5, 1), random_adapter(holder, 5, 2)])
    (module,) = merged.apart
    assert merged.adapter.rank(module) == 5
    assert merged.apart[module] < 1e-9


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    one = random_adapter(model(), 3, 1)
    other = random_adapter(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(20, 8), nn.Linear(8, 4)), 3)
    fewer = Adapter(one.config, {n: t for n, t in one.tensors.items() if ".3." not in n}, "fewer")
    for adapters, method, says in (
        ([one], "products", "at least two adapters"),
        ([one, other], "products", r"what writes 'base_model.model.2' has shapes \[7, 3\] and \[8, 3\]"),
        ([one, fewer], "products", "do not adapt the same weights: base_model.model.3"),
        ([one, random_adapter(model(), 2)], "factors", "ranks 3 and 2. method='products' takes any"),
        ([one, random_adapter(model(), 3, bias=True)], "products", "only one of them has a bias"),
        ([replace_tensors(one, dict(one.tensors), lora_alpha=0), one], "products", "lora_alpha of .* is 0"),
    ):
        with pytest.raises(MergeError, match=says):
            merge_adapters(adapters, method=method)
    with pytest.raises(MergeError, match="is not an adapter"):
        merge_adapters([one, tmp_path])
    pytest.importorskip("matplotlib")
    write_report(merge_adapters([one, one], method="factors").report(), tmp_path / "report.md")
    assert "from the average of products" in (tmp_path / "report.md").read_text()
