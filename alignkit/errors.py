"""The errors of alignkit. A call, an input or a file that is at fault raises one of them.

Most classes also derive from the builtin that a caller would expect, so that ``except ValueError`` keeps working. Only
protocols of Python keep their own errors: a mapping raises ``KeyError``, a settings model the errors of pydantic.
"""

from __future__ import annotations


class AlignkitError(Exception):
    """Root of all errors raised by alignkit."""


class ArgumentError(AlignkitError, TypeError, ValueError):
    """An argument of a public function is missing or unknown, has a wrong type, or is none of the choices."""


class UsageError(AlignkitError, ValueError):
    """A command line does not make sense."""


class SpecError(AlignkitError, ValueError):
    """A notation string or a spec cannot be read."""


class GraphError(AlignkitError, ValueError):
    """A symmetry graph breaks one of its invariants."""


class ShapeMismatchError(GraphError):
    """The sizes that a layout implies differ from the shape of a tensor."""


class UndeterminedSizeError(GraphError):
    """Shapes leave the size of a group open; ``groups`` names the groups in question."""

    def __init__(self, message: str, groups: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.groups = groups


class BindError(AlignkitError, ValueError):
    """Weights do not fit the graph that they are bound to; the message lists every mismatch."""


class AlignmentError(AlignkitError, ValueError):
    """Index vectors are not an element of the graph's symmetry group, or belong to another graph."""


class FoldError(AlignkitError, ValueError):
    """Weights cannot be folded, balanced or unfolded."""


class WidenError(AlignkitError, ValueError):
    """A network cannot be widened so that it computes the same."""


class WeightsError(AlignkitError, ValueError):
    """A weights file cannot be read or written, or reading it would not be safe."""


class VerificationError(AlignkitError):
    """A symmetry of the graph changes the function of the model."""


class OutputError(AlignkitError, TypeError):
    """A model returns an object in which its tensors cannot be found."""


class AssignmentError(AlignkitError, ValueError):
    """A linear assignment problem has no meaningful solution."""


class SolverError(AlignkitError, ValueError):
    """A solver is unknown, its options are wrong, or something that it needs is missing."""


class SolverChoiceError(SolverError, UsageError):
    """There is no such solver or option, a value is out of range, or what a solver works with was not given."""


class PluginError(AlignkitError):
    """A plugin could not be loaded or broke the contract of a hook."""


class PluginWarning(UserWarning):
    """A plugin is broken, raised while it watched, or changed the state of the process. alignkit works on."""


class TaskError(AlignkitError, ValueError):
    """A task cannot be evaluated with the model, batches or weights given."""


class TaskChoiceError(TaskError, UsageError):
    """The name of a task names nothing."""


class TraceError(AlignkitError, ValueError):
    """A model cannot be traced."""


class MissingExtraError(AlignkitError, ImportError):
    """Something optional is not installed; the message gives the command that installs it."""


class MergeError(AlignkitError, ValueError):
    """Models cannot be merged, carried over or repaired: their tensors differ in name, shape, kind or value."""


class ComparisonError(AlignkitError, ValueError):
    """A comparison cannot be run, resumed, read or drawn."""


class ModelSourceError(AlignkitError, ValueError):
    """A model that was named on the command line cannot be built."""


class ZooError(AlignkitError, ValueError):
    """A data set of networks cannot be trained, resumed or read, or its images are missing."""


class ZooChoiceError(ZooError, UsageError):
    """There is no such family, source or field of one."""


class TrainingError(AlignkitError, ValueError):
    """An aligner cannot be trained: its sets of networks, its settings or its checkpoint do not fit."""


class ReportError(AlignkitError, ValueError):
    """A report cannot be written."""
