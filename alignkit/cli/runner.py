"""What every job command does around its one call: checks, the estimate, and the result as text, JSON and report."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import typer

import alignkit
from alignkit.cli.folded import fold_facts, fold_lines, fold_sections
from alignkit.cli.outputs import check_free, check_report, check_weights
from alignkit.cli.switches import ArchitectureSwitches, JobSwitches, SymmetrySwitches, TaskSwitches, deciding
from alignkit.errors import VerificationError
from alignkit.text import list_some, readable_bytes

if TYPE_CHECKING:
    from alignkit.graph.proof.verify import Verification
    from alignkit.jobs import Estimate, NetworkFiles

NOT_RUN = "Function check: not done, a spec cannot be run. With --model the function is checked."
MAX_CHECKED = 1_000_000_000
"""Weights of all networks of a function check together: seconds for small networks, minutes for the largest."""
TELL_FOLDS = ("check", "fold", "rotate", "widen")
"""Jobs whose results tell themselves what was folded."""
NOT_HELD = "Function check: not done, it holds the whole network, which --memory is there to avoid."


class Runner:
    """One run of a job command.

    A command is ``with Runner(...) as run:``, then `open` (which ends a dry run), one call of the public API, the
    writing of its outputs in ``with run.file_set.collecting():``, and `finish`, with which they all appear.

    Args:
        job: Name of the command.
        switches: What every job command takes.
        outputs: Files of weights and alignments that are written, by their switch.
        like: An input; where it is a folder, ``--output`` may be one.
        fills_from: For a folder of networks at ``--output``, which was checked: the number of the first of them.
        kept: What is written on the way, and stays when the command is interrupted.
    """

    def __init__(
        self,
        job: str,
        switches: JobSwitches,
        outputs: Mapping[str, Path | None],
        *,
        like: Path | None = None,
        fills_from: int | None = None,
        kept: Path | None = None,
    ) -> None:
        if like is not None:  # before its form is asked for
            alignkit.checkpoints.check_is_there(like)
        folder = like is not None and (
            os.path.isdir(like) or like.name.endswith(".index.json") or alignkit.checkpoints.is_hub_id(like)
        )
        if fills_from is None:
            check_weights(dict(outputs), switches.force, folder=folder)
        check_report(switches.report, switches.force)
        self.job, self.switches = job, switches
        check_free({"--resume": kept}, force=True)
        self.written = [str(path) for path in (*outputs.values(), kept) if path is not None]
        self.file_set = alignkit.checkpoints.FileSet()
        self.kept = kept
        self._output, self._like, self._fills_from = outputs.get("--output"), like, fills_from
        self._function: dict[str, float | None] = {}
        self._lines: list[str] = []

    def __enter__(self) -> Runner:
        with ExitStack() as stack:
            self._started = perf_counter()
            self._memory = stack.enter_context(alignkit.jobs.peak_memory())
            stack.enter_context(self.switches.watching())
            self.on_progress = stack.enter_context(self.switches.passes())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._stack.__exit__(kind, error, trace)
        self.file_set.__exit__()
        if isinstance(error, KeyboardInterrupt):
            kept = [f"What is done is kept in {self.kept}, and the same command goes on there."] if self.kept else []
            outputs = [path for path in self.written if path != str(self.kept)]
            nothing = "Nothing else was written." if self.kept else "Nothing was written."
            written = f"Written: {', '.join(outputs)}." if self.file_set.is_published and outputs else nothing
            error.add_note(" ".join([*kept, written]))

    def open(
        self,
        paths: Sequence[Path],
        architecture: ArchitectureSwitches,
        kinds: SymmetrySwitches | None = None,
        *,
        solver: str | Sequence[str] | None = None,
        memory: str | None = None,
        balance: bool = True,
        bases: Mapping[int, int] | None = None,
        dtype: str | None = None,
        tokenizer: str | None = None,
    ) -> NetworkFiles:
        """Open the networks, which ``solver`` aligns within an amount of memory, with symmetries of some ``kinds``.

        Folded networks are computed here, so that nothing is solved where one cannot be folded. With ``--dry-run`` the
        estimate is printed instead, and the command ends.
        """
        look_in_this_folder()
        kinds = kinds or SymmetrySwitches()
        kinds.check()
        read = not self.switches.dry_run and memory is None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", alignkit.jobs.FolderWarning)  # they are printed with the result
            files = alignkit.open_networks(
                *paths,
                spec=architecture.spec,
                model=architecture.model,
                read=read,
                ignore_config=architecture.ignore_config or (),
                outputs=architecture.outputs or (),
                key=architecture.key,
                prefix=architecture.prefix,
                symmetries=kinds.symmetries,  # type: ignore[arg-type]
                keep_tied=kinds.keep_tied,
                balance=balance,
                bases=bases,
                memory=memory,
                dtype=dtype,
                download=architecture.allow_download,
                allow_missing=architecture.allow_missing or (),
                tokenizer=tokenizer,
                on_progress=self.on_progress,
            )
        self._check_places(files)
        self._lines += [f"Note: {note}" for note in files.notes]
        if memory is not None and self.job not in TELL_FOLDS:
            self._lines.append(NOT_HELD)
        if self.switches.dry_run:
            writes = [*self.written, *([str(self.switches.report)] if self.switches.report else [])]
            self.end_dry_run(files.estimate(self.job, solver=solver, writes=writes))  # type: ignore[arg-type]
        files = replace(files, scratch=self._scratch(files))
        if files.paths:
            self._tell_plan(files.plan(self.job, solver=solver))  # type: ignore[arg-type]
        if self.job not in TELL_FOLDS and files.folded:
            self._lines += fold_lines(files)
        return files

    def _scratch(self, files: NetworkFiles) -> Path | None:
        """Return a folder beside the output for what is folded on disk, where the disk has room for both."""
        if files.memory is None or files.symmetries != "all" or self._output is None:
            return None
        needed = 2 * sum(checkpoint.nbytes for checkpoint in files.checkpoints)
        place = self._output.absolute().parent
        if not place.is_dir() or shutil.disk_usage(place).free < needed:
            return None
        return self._stack.enter_context(alignkit.checkpoints.scratch_beside(self._output))

    def _check_places(self, files: NetworkFiles) -> None:
        """Refuse outputs that would be refused once they are written."""
        if self._output is None:
            return
        if self._fills_from is not None:
            files.check_set(self._output, first=self._fills_from, overwrite=self.switches.force)
        elif self._like is not None:
            like = list(files.paths).index(self._like)
            files.check_place(self._output, like=like, overwrite=self.switches.force)

    def record(
        self,
        files: NetworkFiles,
        result: Any,
        parameters: Mapping[str, Any] | None = None,
        more: Sequence[Path] = (),
    ) -> alignkit.jobs.Record:
        """Return the record of this run, by default with the switches that were given; ``more`` was read as well."""
        return files.record(
            self.job, parameters or deciding(self.switches.given), {**result.facts(), **self._function}, more
        )

    def tell_changes(self, now: alignkit.jobs.Record, earlier: alignkit.jobs.Record | None) -> None:
        """Tell what is not as it was when the record was written that this run follows."""
        if earlier is None:
            return
        if changed := now.changed_inputs(earlier):
            self._lines.append(f"Note: {list_some(changed, 4)} changed since the record was written.")
        if others := [f"{name} {v}" for name, v in earlier.versions.items() if now.versions.get(name) != v]:
            self._lines.append(f"Note: the record was written with {list_some(others)}. Numbers may differ slightly.")

    def _tell_plan(self, estimate: Estimate) -> None:
        """Say before a long job what it will take."""
        if estimate.is_large or self.switches.verbose:
            self.switches.note(estimate.summary)

    def end_dry_run(self, estimate: Estimate) -> None:
        """Print an estimate, and end the command."""
        self._print(estimate.explain(), estimate.facts(), self.switches.show)
        raise typer.Exit

    def check_function(self, files: NetworkFiles, first: int) -> Verification | None:
        """Prove that reordering units keeps the function of the networks, where they can be run.

        Each runs with its own configuration, the one numbered ``first`` first; all, as long as they have no more than
        `MAX_CHECKED` weights together.

        Returns:
            The check with the largest error.
        """
        if files.example is None:
            self._function = {"function_error": None}
            self._lines.append(NOT_RUN)
            return None
        size = max(1, sum(tensor.numel() for tensor in files.weights[first].values()))
        others = [index for index in range(len(files.paths)) if index != first]
        numbers = sorted([first, *others][: max(1, MAX_CHECKED // size)])
        checks = [self._check_one(files, index) for index in numbers]
        worst = max(checks, key=lambda check: check.error)
        names = list_some([str(files.paths[index]) for index in numbers], 4)
        self._function = {"function_error": worst.error, "function_checked": len(checks)}
        self._lines.append(f"Function check of {names}: {worst.explain()}")
        return worst

    def check_rounding(self, files: NetworkFiles, moved: Mapping[int, Any]) -> None:
        """Run folded networks as they were given and once they are aligned, and tell by how much outputs differ.

        Rotations are rounded to the dtype of the network, so that it is not nothing. ``moved`` are the aligned weights
        of networks by their number.
        """
        if not files.folded or files.memory is not None:
            return
        size = max(1, sum(tensor.numel() for tensor in files.weights[0].values()))
        errors = {}
        for index, network in [*moved.items()][: max(1, MAX_CHECKED // size)]:
            if (found := files.error_of(index, network)) is not None:
                errors[str(files.paths[index])] = found.error
        if errors:
            self._function["rounding_error"] = max(errors.values())
            told = list_some([f"{error:.1g} in {name}" for name, error in errors.items()], 4)
            self._lines.append(f"Outputs differ, once networks are folded, aligned and rounded, by {told}.")

    def _check_one(self, files: NetworkFiles, index: int) -> Verification:
        example = files.own_example(index)
        assert example is not None, "the first network has one of the same shapes"
        try:
            return files.graph.verify(files.module(index), *example[1], **example[2])
        except VerificationError as error:
            raise VerificationError(f"{files.paths[index]}: {error}") from error

    def finish(
        self,
        result: Any,
        title: str,
        files: NetworkFiles | None = None,
        *,
        named: Mapping[str, Any] | None = None,
        **report_arguments: Any,
    ) -> None:
        """Print the result of a job, as text or JSON, and write its report.

        ``named`` are the files and other facts that belong into JSON and the summary of the report.
        """
        self._stack.close()  # the peak of memory is known once the measurement ends
        seconds, peak = perf_counter() - self._started, self._memory.peak
        used = f", {readable_bytes(peak)} of memory" if peak else ""  # 0 is a lower bound that says nothing
        if self.switches.report is not None:
            summary = {name: str(value) for name, value in (named or {}).items()} | {"in all": f"{seconds:.2f} s{used}"}
            report = result.report(title, facts=summary, **report_arguments)
            if files is not None and self.job not in TELL_FOLDS:
                report = replace(report, sections=(*report.sections, *fold_sections(files)))
            with self.file_set.collecting():
                alignkit.reports.write_report(report, self.switches.report)
            self.written.append(str(self.switches.report))
        self.file_set.publish()
        if files is not None and files.unknown:
            unknown = list_some(files.unknown, 5)
            self._lines.append(f"Not part of the model, kept as they are in the first input: {unknown}.")
        rounding = [] if files is None else files.rounding.explain()
        lines = [
            result.explain(),
            *rounding,
            *self._lines,
            f"{seconds:.2f} s{used}.",
            *(f"Written: {written_with_record(path)}" for path in self.written),
        ]
        notes = {} if files is None else {"notes": list(files.notes)}
        if files is not None and self.job not in TELL_FOLDS:
            notes |= fold_facts(files)
        rounded = files.rounding.facts() if files is not None and files.rounding.size else {}
        measured = {**notes, **self._function, "total_seconds": seconds, "peak_memory": peak}
        self._print("\n".join(lines), {**(named or {}), **rounded, **result.facts(), **measured}, self.switches.say)

    def _print(self, text: str, facts: Mapping[str, Any], say: Callable[[str], None]) -> None:
        if self.switches.as_json:
            typer.echo(json.dumps(facts, indent=2, allow_nan=False, default=str))
        else:
            say(text)


def written_with_record(path: str) -> str:
    """Name a file that was written, and the record beside it where its own format has no room for one."""
    if alignkit.checkpoints.file_kind(Path(path)) != "pickle":
        return path
    return f"{path} and {alignkit.jobs.sidecar(Path(path)).name}"


def look_in_this_folder() -> None:
    """Let ``module:factory`` name a module in the current folder, as ``python -m`` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def load_task(files: NetworkFiles, source: str | None) -> alignkit.Task | None:
    """Return the task that ``--task`` names, see `NetworkFiles.task`; None for None."""
    return None if source is None else files.task(source)


def task_arguments(files: NetworkFiles, switches: TaskSwitches) -> dict[str, Any]:
    """Return the keyword arguments of jobs that measure and mend their result on a task."""
    return {
        "task": load_task(files, switches.task),
        "reset_batchnorm": switches.reset_batchnorm,
        "repair": switches.repair,
    }
