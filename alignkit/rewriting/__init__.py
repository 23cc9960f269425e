"""Exact rewrites of one network: folds carried out and undone, spaces balanced."""

from alignkit.rewriting.balancing import BalancedSpace, balance_weights
from alignkit.rewriting.folding import Taken, fold_weights, unfold_weights
from alignkit.rewriting.wide import WideWeights

__all__ = ["BalancedSpace", "Taken", "WideWeights", "balance_weights", "fold_weights", "unfold_weights"]
