"""What a training run leaves on disk: metrics as CSV, and checkpoints from which it resumes."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.documents import Content, Format
from alignkit.checkpoints.file_set import failing_to_write
from alignkit.checkpoints.opening import read_file
from alignkit.checkpoints.pickle_file import load_pickle, save_pickle
from alignkit.checkpoints.staging import staged
from alignkit.errors import MissingExtraError, TrainingError, WeightsError
from alignkit.text import shorten

MAX_METRICS = 1_000_000_000
"""Maximum number of bytes of a table of metrics."""
CHECKPOINT, METRICS, BEST = "checkpoint.pt", "metrics.csv", "best.safetensors"


@dataclass
class TrainingCheckpoint:
    """The state of a run after some steps.

    Attributes:
        run: What the run is: settings, sets and aligner, as JSON values. A run resumes only from its own.
        step: Steps that are done.
        aligner: Parameters.
        optimizer: State of the optimizer.
        best: Parameters of the best step so far.
        best_step: That step.
        best_score: Its score on held-out pairs.
        best_barriers: Its mean barrier on those of each set.
        start: The score before the first step.
        idle: Looks at held-out pairs since then.
        stopped: Whether the run has ended early.
    """

    run: dict[str, Any]
    step: int = 0
    aligner: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    best_step: int = 0
    best_score: float = float("inf")
    best_barriers: list[float] = field(default_factory=list)
    start: float | None = None
    idle: int = 0
    stopped: bool = False

    def save(self, folder: Path) -> None:
        """Write the checkpoint; the one before is there until this one is whole."""
        with staged(folder / CHECKPOINT) as temporary:
            save_pickle({**FORMAT.header, **vars(self), "run": json.dumps(self.run)}, temporary)

    @classmethod
    def load(cls, folder: Path, run: dict[str, Any]) -> TrainingCheckpoint:
        """Read the checkpoint of a folder, or return that of a run before its first step where there is none.

        Raises:
            TrainingError: It cannot be read, or belongs to another run.
        """
        path = folder / CHECKPOINT
        try:
            state = FORMAT.check_header(load_pickle(path), path)
        except WeightsError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return cls(run)
            raise TrainingError(str(error)) from error
        with FORMAT.rebuilding(path):
            content = _TrainingContent.model_validate(state)
            checkpoint = cls(**{**vars(content), "run": json.loads(content.run)})
        if differences := _differences(checkpoint.run, run):
            raise TrainingError(
                f"{path} belongs to another run: {'; '.join(differences)}. Use the same settings and sets, or start in "
                "another folder."
            )
        return checkpoint


class _TrainingContent(Content, arbitrary_types_allowed=True):
    """A checkpoint in its file. The optimizer's own check of its state is its `load_state_dict`."""

    run: str
    step: NonNegativeInt
    aligner: dict[str, Tensor]
    optimizer: dict[str, Any]
    best: dict[str, Tensor]
    best_step: NonNegativeInt
    best_score: float
    best_barriers: list[float]
    start: float | None
    idle: NonNegativeInt
    stopped: bool


FORMAT = Format(
    "alignkit.training", "checkpoint of a training run", "alignkit train-deepalign", TrainingError, _TrainingContent
)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    differences = []
    for key in dict.fromkeys([*old, *new]):
        before, after, name = old.get(key), new.get(key), f"{path}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            differences += _differences(before, after, f"{name}.")
        elif before != after:
            before, after = (shorten(json.dumps(value), 60) for value in (before, after))
            differences.append(f"{name} was {before} and is {after}")
    return differences


@dataclass
class MetricsRow:
    """One line of the metrics: a step, or a look at held-out pairs after it. None: not measured in this line."""

    step: int
    set: int | None = None
    loss: float | None = None
    supervised: float | None = None
    alignment: float | None = None
    interpolation: float | None = None
    gradient_norm: float | None = None
    learning_rate: float | None = None
    sharpness: float | None = None
    seconds: float | None = None
    held_out: float | None = None
    barriers: tuple[float, ...] = ()


class Metrics:
    """Metrics of a run in ``metrics.csv``, and as TensorBoard scalars if that is wanted.

    Args:
        folder: Folder of the run.
        sets: How many sets of networks there are; each has a column for its barrier on held-out pairs.
        after: Lines of later steps are taken out: the run resumes from here.
        tensorboard: Also write scalars for TensorBoard.

    Raises:
        MissingExtraError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, sets: int, after: int, *, tensorboard: bool = False) -> None:
        plain = [name for name in MetricsRow.__dataclass_fields__ if name != "barriers"]
        self.columns = [*plain, *(f"barrier_{i + 1}" for i in range(sets))]
        path = self._path = folder / METRICS
        lines = read_metrics(path) if os.path.lexists(path) and after else []
        kept = [line for line in lines if int(line["step"]) <= after]
        with staged(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        with failing_to_write(path):
            self._stream = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._stream, self.columns)
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtraError("--tensorboard needs TensorBoard: pip install tensorboard") from error
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def add(self, row: MetricsRow) -> None:
        """Write one line; it is on disk when this returns."""
        values = {**asdict(row), **{f"barrier_{i + 1}": barrier for i, barrier in enumerate(row.barriers)}}
        del values["barriers"]
        with failing_to_write(self._path):
            self._writer.writerow({name: "" if value is None else value for name, value in values.items()})
            self._stream.flush()
        if self._board is not None:
            for name, value in values.items():
                if name not in ("step", "set") and value is not None:
                    self._board.add_scalar(name, value, row.step)

    def close(self) -> None:
        """Close the files."""
        with failing_to_write(self._path):
            self._stream.close()
        if self._board is not None:
            self._board.close()


@check_arguments
def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read the lines of a ``metrics.csv``; a last line that was cut off is left out.

    Raises:
        TrainingError: It cannot be read, or a line does not begin with the number of a step.
    """
    try:
        table = csv.DictReader(io.StringIO(read_file(path, MAX_METRICS).decode(), newline=""))
        lines = [line for line in table if None not in line.values()]
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, csv.Error) as error:
        raise TrainingError(f"{path} is not a table of metrics: {error}.") from error
    for number, line in enumerate(lines, 2):
        if not line.get("step", "").isdecimal() or None in line:
            raise TrainingError(f"line {number} of {path} is not one of metrics: {shorten(str(line), 60)}.")
    return lines
