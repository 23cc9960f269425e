"""What ``alignkit transport`` and ``alignkit merge`` do with adapters, probes and other tensors beside a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import alignkit
from alignkit.cli.merge_recipe import Plan
from alignkit.cli.outputs import check_weights
from alignkit.cli.runner import Runner
from alignkit.cli.switches import ArchitectureSwitches, JobSwitches, SolverSwitches, SymmetrySwitches
from alignkit.cli.values import one_of
from alignkit.errors import UsageError

if TYPE_CHECKING:
    from alignkit.jobs import NetworkFiles

ADAPTER_ROLES = ("the adapter", "the base that it was trained on", "the base that it was carried to")
"""What was read, in the model card of an adapter that was carried."""


def refuse(what: str, given: Mapping[str, bool]) -> None:
    """Refuse switches that do not go with what is carried or merged; those that were given are true."""
    if wrong := [switch for switch, is_given in given.items() if is_given]:
        raise UsageError(f"{', '.join(wrong)} does not go with {what}.")


@dataclass(frozen=True)
class Carrying:
    """The arguments of ``alignkit transport`` where no network is carried, but what belongs to one."""

    base_a: Path
    thing: Path
    base_b: Path
    output: Path
    architecture: ArchitectureSwitches
    kinds: SymmetrySwitches
    solving: SolverSwitches
    job: JobSwitches
    alignment: Path | None
    save_alignment: Path | None
    memory: str | None

    def adapter(self) -> None:
        """Carry a LoRA adapter, and write a folder that peft loads."""
        adapter = alignkit.jobs.Adapter.read(self.thing)

        def write(carried: Any, record: alignkit.jobs.Record, files: NetworkFiles) -> None:
            sources = [alignkit.jobs.adapter_source(self.thing), *alignkit.jobs.card_sources(files)]
            about = "A LoRA adapter that was carried from one base to another."
            card = alignkit.jobs.model_card(
                sources, self.output, about, ADAPTER_ROLES, {}, carried.explain(), ("lora",)
            )
            adapter = carried.adapter.on_base(str(self.base_b))
            adapter.write(self.output, overwrite=self.job.force, record=record, card=card)

        self._carry(True, write, lambda *sides, **given: alignkit.transport_adapter(*sides, adapter=adapter, **given))

    def tensors(self, layouts: str) -> None:
        """Carry tensors whose layouts a JSON file holds, or one word says; constants are written beside them."""
        texts: Any = layouts if layouts.startswith("@") else alignkit.jobs.read_spec(layouts)
        tensors = alignkit.read_weights(self.thing)

        def write(carried: Any, record: alignkit.jobs.Record, files: NetworkFiles) -> None:
            constants = {f"{name}.constant": tensor for name, tensor in carried.constants.items()}
            alignkit.jobs.write_described(self.output, {**carried.tensors, **constants}, record)

        self._carry(
            False,
            write,
            lambda *sides, model, **given: alignkit.transport_tensors(
                *sides, tensors=tensors, layouts=texts, model=model, **given
            ),
            with_model=True,
        )

    def optimizer(self, names: Path | None) -> None:
        """Carry the state of an optimiser, alone or in a training checkpoint, and write it alone."""
        if alignkit.checkpoints.file_kind(self.output) == "safetensors":
            raise UsageError(f"--output {self.output}: the state of an optimiser is more than tensors. End it in .pt.")
        state = alignkit.checkpoints.read_optimizer(self.thing)
        ordered = None if names is None else alignkit.jobs.read_names(names)

        def write(carried: Any, record: alignkit.jobs.Record, files: NetworkFiles) -> None:
            alignkit.checkpoints.write_optimizer(self.output, carried.state)
            alignkit.jobs.write_sidecar(self.output, record)

        self._carry(
            False,
            write,
            lambda *sides, **given: alignkit.jobs.carry_optimizer(*sides, state=state, names=ordered, **given),
            as_trained=True,
        )

    def _carry(
        self,
        folder: bool,
        write: Callable[[Any, alignkit.jobs.Record, NetworkFiles], None],
        call: Callable[..., Any],
        *,
        with_model: bool = False,
        as_trained: bool = False,
    ) -> None:
        check_weights({"--output": self.output}, self.job.force, folder=folder)
        with Runner("transport", self.job, {"--save-alignment": self.save_alignment}) as run:
            run.written.insert(0, str(self.output))
            solver = None if self.alignment else self.solving.solver
            files = run.open(
                [self.base_a, self.base_b],
                self.architecture,
                self.kinds,
                solver=solver,
                balance=not as_trained,
                memory=self.memory,
            )
            in_memory = self.memory is None
            check = run.check_function(files, 1) if in_memory else None
            known = None if self.alignment is None else alignkit.Alignment.load(self.alignment, files.graph)
            example = files.own_example(0) if with_model else None
            extra = {"model": example and example[0]} if with_model else {}
            given = files.given if in_memory else files.weights
            sides = given if as_trained else files.folded or given
            carried = call(files.graph, *sides, alignment=known, **extra, **self.solving.arguments)
            record = run.record(files, carried, more=[self.thing])
            with run.file_set.collecting():
                write(carried, record, files)
                if self.save_alignment is not None:
                    carried.alignment.save(self.save_alignment)
            named = {"base A": self.base_a, "carried": self.thing, "base B": self.base_b, "output": self.output}
            title = f"{self.thing} carried to {self.base_b}"
            run.finish(carried, title, files, named=named, pair=files.bind() if in_memory else None, check=check)


def merge_adapters(plan: Plan, job: JobSwitches) -> None:
    """Average LoRA adapters, and write a folder that peft loads."""
    adapters, output, recipe = plan.models, plan.output, plan.recipe
    method = one_of("--method", "products" if recipe.method == "linear" else recipe.method, ("products", "factors"))
    weights = recipe.weights or {}
    if weights.keys() - {"*"}:
        raise UsageError("--weight PATTERN=...: adapters have one weight each.")
    check_weights({"--output": output}, job.force, folder=True)
    with Runner("merge", job, {}) as run:
        run.written.append(str(output))
        if job.dry_run:
            raise UsageError("--dry-run does not go with adapters: nothing is solved for them.")
        merged = alignkit.merge_adapters(adapters, weights.get("*"), method)
        inputs = [alignkit.jobs.input_of_path(path) for path in adapters]
        record = alignkit.jobs.make_record("merge", recipe.parameters(), inputs, merged.facts())
        run.tell_changes(record, plan.earlier)
        sources = [alignkit.jobs.adapter_source(path) for path in adapters]
        roles = [f"weight {value:g}" for value in weights.get("*") or [1 / len(adapters)] * len(adapters)]
        card = alignkit.jobs.model_card(
            sources, output, f"A merge of {len(adapters)} LoRA adapters.", roles, {"Method": method}, merged.explain(),
            ("merge", "lora"), recipe.parameters(),
        )  # fmt: skip
        with run.file_set.collecting():
            merged.adapter.write(output, overwrite=job.force, record=record, card=card)
        names = [str(path) for path in adapters]
        named = {"adapters": names, "output": output}
        run.finish(merged, f"Merge of {', '.join(names)}", named=named)
