"""What is minimised: the objective, its relaxations, and linear assignment."""

from alignkit.matching.assignment import linear_assignment
from alignkit.matching.objective import Objective

__all__ = ["Objective", "linear_assignment"]
