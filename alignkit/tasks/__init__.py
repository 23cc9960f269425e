"""A model with data and a loss, and the loss on the line between two networks."""

from alignkit.tasks.interpolation import Interpolation
from alignkit.tasks.task import TaskResult

__all__ = ["Interpolation", "TaskResult"]
