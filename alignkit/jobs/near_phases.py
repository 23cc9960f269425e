"""Phases of a network that was aligned, brought to the nearest of those of its reference."""

from __future__ import annotations

from typing import TypeVar, cast

from alignkit.graph import SymmetryGraph
from alignkit.graph.bind import Weights, fit_of, weights_of
from alignkit.graph.phases import phases_in
from alignkit.graph.stored import StoredNetwork
from alignkit.jobs.rewritten import Rewriting
from alignkit.rewriting import NearNetwork, bring_near

WeightsT = TypeVar("WeightsT", bound=Weights)


def with_near_phases(graph: SymmetryGraph, reference: Weights, network: WeightsT) -> WeightsT:
    """Return a network whose units are in the order of a reference, its biases moved by half periods nearest to it.

    Folding alone brings phases to the nearest of 0, so that a bias that is half a half period away from it goes to one
    side here and to the other there. Units change their sign where that helps. A network on disk is moved when it is
    asked for a tensor.
    """
    if not phases_in(graph):
        return network
    if isinstance(network, StoredNetwork):
        assert isinstance(reference, StoredNetwork), "networks on disk are aligned to networks on disk"
        return cast(WeightsT, NearNetwork(network, reference))
    work = Rewriting(network, graph)
    bring_near(work.wide, graph, fit_of(graph).check_tensors(weights_of(reference), "the reference"))
    return cast(WeightsT, work.result())
