"""Exact rewrites of one network: folded and unfolded, balanced, stretched, widened, phases moved; on disk, too."""

from alignkit.rewriting.axes import AxisChanges
from alignkit.rewriting.balancing import balance_weights, follow_balances, multiply_spaces, spaces_apart
from alignkit.rewriting.folding import Taken, fold_weights, unfold_weights
from alignkit.rewriting.modules import module_with
from alignkit.rewriting.near_network import NearNetwork
from alignkit.rewriting.near_phases import bring_near
from alignkit.rewriting.spaces import BalancedSpace
from alignkit.rewriting.stored import FoldedNetwork, folding_bytes
from alignkit.rewriting.stretching import Stretching
from alignkit.rewriting.wide import WideWeights
from alignkit.rewriting.widening import SCORES, UnitMap, Widening

__all__ = ["AxisChanges", "BalancedSpace", "Taken", "WideWeights", "balance_weights", "fold_weights", "module_with"]
__all__ += ["FoldedNetwork", "bring_near", "folding_bytes", "follow_balances", "multiply_spaces", "unfold_weights"]
__all__ += ["SCORES", "NearNetwork", "Stretching", "UnitMap", "Widening", "spaces_apart"]
