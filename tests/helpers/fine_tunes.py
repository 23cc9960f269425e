"""Fine-tunes of small networks, and copies of networks under everything that leaves the function as it is."""

from __future__ import annotations

import torch
from torch import nn

import alignkit
from alignkit import Alignment, SymmetryGraph
from alignkit.graph import Balance
from alignkit.graph.phases import move_phases, phases_in
from alignkit.rewriting import BalancedSpace, WideWeights, module_with, multiply_spaces
from helpers.folding_nets import Net


def random_gauge(graph: SymmetryGraph, seed: int) -> list[BalancedSpace]:
    """Draw what may be moved from one side of each space to the other: factors of 0.3 to 3, matrices of condition 9."""
    generator = torch.Generator().manual_seed(seed)
    spaces = []
    for balance in (balance for balance in graph.balances if isinstance(balance, Balance)):
        shape = (graph.instances(balance.group), graph.groups[balance.group].size)
        factor = torch.exp(2.2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.1)
        if balance.kind == "complex_planes":  # both units of a plane have one
            adjacent = graph.groups[balance.group].kind == "adjacent_planes"
            half = factor[:, : shape[1] // 2]
            factor = half.repeat_interleave(2, -1) if adjacent else half.repeat(1, 2)
        if balance.kind == "monomial":
            factor *= 1.0 - 2.0 * torch.randint(2, shape, generator=generator)
        write, read = factor, factor**-balance.degree
        if balance.kind == "invertible":
            normal = torch.randn(*shape, shape[1], generator=generator, dtype=torch.float64)
            left, _, right = torch.linalg.svd(normal)
            write, read = (left * factor[:, None]) @ right, (left / factor[:, None]) @ right
        spaces.append(BalancedSpace(balance, 0.0, 0.0, 0, write, read))
    return spaces


def gauged(network: nn.Module, graph: SymmetryGraph, seed: int) -> nn.Module:
    """Return an equal network whose scales and matrices are random."""
    wide = WideWeights({graph.first_names[name]: tensor for name, tensor in network.state_dict().items()})
    multiply_spaces(wide, graph, random_gauge(graph, seed))
    values = wide.rounded()
    return module_with(network, {name: values[first] for name, first in graph.first_names.items()})


def copied(net: Net, model: nn.Module, seed: int) -> nn.Module:
    """Return a folded network under a random element of its whole group, the same for every network of a seed."""
    folded = alignkit.fold(model, net.graph, balance=False).network
    state = gauged(folded, net.graph, seed).state_dict()
    values = {net.graph.first_names[name]: tensor.clone() for name, tensor in state.items()}
    move_phases(net.graph, phases_in(net.graph), values, torch.Generator().manual_seed(seed))
    moved = module_with(folded, {n: values[first] for n, first in net.graph.first_names.items()})
    return Alignment.random(net.graph, seed).apply(moved)


def between(base: nn.Module, tuned: nn.Module, share: float) -> nn.Module:
    other = tuned.state_dict()
    return module_with(
        base, {n: t + share * (other[n] - t) for n, t in base.state_dict().items() if t.is_floating_point()}
    )


def tuned_of(model: nn.Module, size: float = 0.1) -> nn.Module:
    """Return a network some way off, as if it had been tuned."""
    generator = torch.Generator().manual_seed(11)
    state = {n: t for n, t in model.state_dict().items() if t.is_floating_point() and not n.endswith("running_var")}
    noise = {n: size * torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in state.items()}
    return module_with(model, {n: t + noise[n] for n, t in state.items()})
