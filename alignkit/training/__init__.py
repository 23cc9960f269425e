"""Training of aligners on sets of networks: `train` and what it takes and gives."""

from alignkit.training.augment import Augmentations, find_freedoms
from alignkit.training.card import describe_networks, training_card
from alignkit.training.loop import Report, TrainingResult, train
from alignkit.training.pairs import Networks
from alignkit.training.records import BEST, CHECKPOINT, METRICS, MetricsRow, read_metrics
from alignkit.training.settings import RECOMMENDED, TrainingSettings

__all__ = [
    "BEST",
    "CHECKPOINT",
    "METRICS",
    "RECOMMENDED",
    "Augmentations",
    "MetricsRow",
    "Networks",
    "Report",
    "TrainingResult",
    "TrainingSettings",
    "describe_networks",
    "find_freedoms",
    "read_metrics",
    "train",
    "training_card",
]
