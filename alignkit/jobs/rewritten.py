"""A network that a job rewrites exactly: computed in float64, rounded once, run before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.errors import FoldError, VerificationError
from alignkit.graph import SymmetryGraph
from alignkit.graph.bind import WeightsSource, fit_of, weights_of
from alignkit.graph.module_copy import copy_module
from alignkit.graph.proof.verify import Equivalence, same_function
from alignkit.graph.rewrites import under_both_names, untied_heads
from alignkit.jobs.example_inputs import example_or_random
from alignkit.rewriting import WideWeights, fold_weights, module_with


@dataclass(frozen=True)
class FoldCheck:
    """What running a network before and after a fold, or a rotation, showed.

    ``exact`` compares outputs with the rewritten weights in float64, ``rounded`` with the weights in the dtype of the
    network, whose rounding is all that is left.
    """

    exact: Equivalence
    rounded: Equivalence

    def explain(self) -> str:
        """Say in a sentence by how much outputs differ."""
        measured = f"{self.exact.error:.1g} of their size (tolerance {self.exact.tolerance:.0e}, {self.exact.dtype})"
        return f"outputs differ by {measured}, and by {self.rounded.error:.1g} once the weights are rounded"


class Rewriting:
    """One network while it is rewritten in place in ``wide``; the network itself stays.

    Args:
        network: A module, a state dict or a checkpoint path.
        graph: Its graph. Heads that its folds untie may be left out of a state dict.

    Raises:
        FoldError: The network does not fit the graph.
    """

    def __init__(self, network: WeightsSource, graph: SymmetryGraph) -> None:
        self.network, self.graph = network, graph
        self.heads = untied_heads(graph.folds)
        self.names = under_both_names(weights_of(network), graph.folds)
        fit = fit_of(graph)
        self.tensors = fit.check_tensors(self.names, "the network")
        fit.check_dtypes({"the network": {name: tensor.dtype for name, tensor in self.tensors.items()}})
        fit.raise_if_any(FoldError, "the network does not fit the graph")
        self.wide = WideWeights(self.tensors)

    @property
    def untied(self) -> dict[str, str]:
        """Heads that were tied to an embedding, whose name stands beside them."""
        own = self.tensors
        return {head: source for head, source in self.heads.items() if torch.equal(own[head], own[source])}

    def result(self) -> nn.Module | dict[str, Tensor]:
        """Return the network with its new weights: a module where one was given, else a dict."""
        values = self.wide.rounded()
        named = {name: values[first] for name, first in self.graph.first_names.items()}
        if isinstance(self.network, nn.Module):
            return module_with(self.network, named, self.heads)
        return {name: named[name] for name in self.names}

    def check(self, model: nn.Module | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> FoldCheck | None:
        """Run the network with its weights before and after; None where there is no module, or there are no inputs.

        Args:
            model: A module of the architecture, where the network is not one.
            args: Example inputs. None: random ones of the shapes that the graph was traced with, where it was.
            kwargs: Example inputs by name.

        Raises:
            VerificationError: It does not compute the same before it is rounded, or does not run on the inputs.
        """
        module = self.network if isinstance(self.network, nn.Module) else model
        if module is None:
            return None
        if (call := example_or_random(self.graph, args, kwargs)) is None:
            return None
        plain = module_with(copy_module(module).to(torch.float64), {}, self.heads)

        def compare(values: Mapping[str, Tensor]) -> Equivalence:
            before, after = (
                module_with(plain, {name: side[first] for name, first in self.graph.first_names.items()})
                for side in (self.tensors, values)
            )
            with call.running():
                return same_function(before, after, *call.args, outputs=self.graph.provenance.outputs, **call.kwargs)

        exact = compare({**self.tensors, **self.wide.wide})
        if not exact.same:
            apart = (
                f"outputs differ by {exact.error:.2g} of their size, tolerance {exact.tolerance:.0e} in {exact.dtype}"
            )
            steps = WideWeights(self.tensors)
            for fold in self.graph.folds:
                fold_weights(steps, [fold])
                if not compare({**self.tensors, **steps.wide}).same:
                    raise VerificationError(f"the graph is wrong about this fold: {fold} ({apart}).")
            raise VerificationError(f"the graph is wrong about what it balances or rotates ({apart}).")
        return FoldCheck(exact, compare(self.wide.rounded()))
