"""Training of aligners on sets of networks: `train` and what it takes and gives."""

from alignkit.training.augment import Augmentations, find_freedoms
from alignkit.training.card import training_card
from alignkit.training.estimating import TrainingEstimate, estimate_training
from alignkit.training.loop import Report, TrainingResult, train
from alignkit.training.pairs import Networks, describe_networks
from alignkit.training.records import BEST, CHECKPOINT, METRICS, MetricsRow, read_metrics
from alignkit.training.settings import RECOMMENDED, TrainingSettings
from alignkit.training.starting import command_line, learn_domain, settings_for, starting_aligner

__all__ = [
    "BEST",
    "CHECKPOINT",
    "METRICS",
    "RECOMMENDED",
    "Augmentations",
    "MetricsRow",
    "Networks",
    "Report",
    "TrainingEstimate",
    "TrainingResult",
    "TrainingSettings",
    "command_line",
    "describe_networks",
    "estimate_training",
    "find_freedoms",
    "learn_domain",
    "read_metrics",
    "settings_for",
    "starting_aligner",
    "train",
    "training_card",
]
