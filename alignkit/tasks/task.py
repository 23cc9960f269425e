"""A task: a model, data and a loss, evaluated with any weights."""

from __future__ import annotations

import copy
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.arguments import check_arguments, usable_device
from alignkit.checkpoints.dense import check_name, why_no_values
from alignkit.checkpoints.dtypes import narrow
from alignkit.checkpoints.fit import Fit
from alignkit.errors import AlignkitError, TaskChoiceError, TaskError
from alignkit.graph.bind import Weights
from alignkit.graph.hidden_state import check_hidden_state
from alignkit.graph.proof.model_run import call_arguments
from alignkit.process_state import FILTERS, SWITCHES, watched_state
from alignkit.rewriting import module_with
from alignkit.tasks.batches import Batch, Batches, tensors_in
from alignkit.tasks.measures import LOSSES, METRICS, Measure, measure, measure_name, scalar
from alignkit.text import describe_error

Forward = Callable[[Any], Sequence[Any]]
"""Called with inputs; returns the outputs of one or more sets of weights."""


@dataclass(frozen=True)
class TaskResult:
    """Means over all samples of a task.

    Attributes:
        loss: Mean loss.
        metric: Mean metric, None if the task has none.
        samples: How many samples were seen.
    """

    loss: float
    metric: float | None
    samples: int


class CannotBatchError(AlignkitError):
    """This model cannot run under ``torch.vmap``. `alignkit.interpolate` then runs one point at a time."""


class OutOfMemoryError(AlignkitError):
    """Several sets of weights at once do not fit memory. `alignkit.interpolate` then takes fewer."""


class Task:
    """What a model is for: data and a loss, evaluated with any weights of that architecture.

    The model gives the architecture only. It is copied without its weights, put into eval mode (BatchNorm uses its
    running statistics, dropout is off) and called through ``torch.func.functional_call``; the model that was passed is
    never changed. A task is for one thread at a time: every thread needs a copy of its own.

    Args:
        model: The architecture.
        batches: ``(inputs [n, ...], targets [n, ...])`` as two whole tensors, or an iterable of such pairs: a list, a
            DataLoader, a generator. ``inputs`` may be a tuple (positional arguments) or a dict (keyword arguments).
            A batch may be one dict with ``"labels"`` too: the model gets all of it, the loss the labels.
            Read at the first evaluation; sequences are used as they are, any other iterable is read once, as far as
            needed, and kept, so that every evaluation sees the same samples (see `alignkit.tasks.batches.Batches`).
        loss: ``"cross_entropy"``, ``"mse"``, ``"model"`` (the loss that the model returns, as models of transformers
            do for batches with labels) or a callable ``(outputs, targets) -> mean over the samples``.
        metric: ``"accuracy"``, a callable like ``loss``, or None.
        device: Where to compute. None is the device of the model's first parameter.
        chunk: Maximum number of samples in one forward call. None takes the batches as they are, and 1024 samples at
            a time of two whole tensors. A chunk that runs out of memory is halved and tried again, down to one sample.

    Raises:
        TaskError: The batches, the loss, the metric or the chunk are not what is described above, or the model cannot
            be copied.
    """

    @check_arguments
    def __init__(
        self,
        model: nn.Module,
        batches: Any,
        loss: str | Measure,
        metric: str | Measure | None = None,
        *,
        device: torch.device | str | None = None,
        chunk: int | None = None,
    ) -> None:
        first_device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        self.device = usable_device(device or ("cpu" if first_device.type == "meta" else first_device))
        self.batches: Iterable[Batch] = Batches(batches, chunk)
        self.loss = measure("loss", loss, LOSSES)
        self.metric = None if metric is None else measure("metric", metric, METRICS)
        self.metric_name = None if self.metric is None else measure_name(self.metric)
        parameters = model.parameters()
        empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in parameters}
        try:
            architecture = copy.deepcopy(model, dict(empty)).eval()
        except Exception as error:  # deepcopy runs code of any class that the model holds
            raise TaskError(f"the model {type(model).__name__} cannot be copied: {error}") from error
        for module in architecture.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(self.device)
        self.model = architecture
        """The architecture, in eval mode; its own weights take no memory and mean nothing. Not to be changed."""
        first: dict[int, str] = {}
        tensors = _tensors(self.model.state_dict(keep_vars=True))
        self._first_names = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
        self._shapes = {name: tuple(tensors[name].shape) for name in first.values()}
        self._dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        self._buffers = frozenset(name for name, _ in self.model.named_buffers(remove_duplicate=False))
        self._rows: int | None = None  # shrinks when memory runs out

    def __repr__(self) -> str:
        metric = "" if self.metric_name is None else f", {self.metric_name}"
        return f"Task({type(self.model).__name__}, {measure_name(self.loss)}{metric}, on {self.device})"

    @classmethod
    @check_arguments
    def from_name(cls, name: str) -> Task:
        """Call the function that ``package.module:function`` names, and return its task.

        Raises:
            TaskChoiceError: There is no such function.
            TaskError: It failed, or it returns something else.
        """
        try:
            function = pkgutil.resolve_name(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise TaskChoiceError(f"{name!r} names no function: {error}. Write package.module:function.") from error
        try:
            with watched_state(f"the task {name}", SWITCHES):
                task = function() if callable(function) else function
        except AlignkitError:
            raise
        except (Exception, SystemExit) as error:  # the caller's own code
            raise TaskError(f"the task {name} failed: {describe_error(error)}") from error
        if not isinstance(task, cls):
            raise TaskError(f"{name} gives a {type(task).__name__}, not an alignkit.Task.")
        return task

    @check_arguments
    def evaluate(self, weights: Weights) -> TaskResult:
        """Compute the mean loss and metric over all samples, with these weights.

        Args:
            weights: A module of the same architecture, or its state dict. Left as they are.

        Returns:
            Means in float64, each batch weighted by its number of samples.

        Raises:
            TaskError: The weights do not fit the model (every mismatch is listed), a batch is empty or does not fit
                the model, or a loss or metric is not finite (the batch is named).
        """
        state = self.checked(weights)
        return self._means(lambda inputs: [self.outputs(state, inputs)], 1)[0]

    @check_arguments
    def evaluate_stack(self, stacked: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> list[TaskResult]:
        """Evaluate ``k`` sets of weights together, by one ``torch.vmap`` of the model.

        Args:
            stacked: Tensors ``[k, ...]`` on the task's device.
            shared: The remaining tensors, the same for all (integer buffers).

        Returns:
            One result for each of the ``k``.

        Raises:
            CannotBatchError: The model uses an operation that vmap cannot batch, or returns more than one tensor.
            OutOfMemoryError: ``k`` is too large for the memory.
            TaskError: As in `evaluate`.
        """
        if not stacked or not all(isinstance(tensor, Tensor) and tensor.ndim for tensor in stacked.values()):
            raise TaskError("stacked= has to hold tensors [k, ...]: they say how many sets of weights there are.")
        count = len(next(iter(stacked.values())))

        def forward(inputs: Any) -> Sequence[Any]:
            try:
                with warnings.catch_warnings():
                    # A slower batching rule of vmap is nothing that the caller could change.
                    warnings.filterwarnings("ignore", message="There is a performance drop")
                    outputs = torch.vmap(lambda weights: self.outputs({**shared, **weights}, inputs))(dict(stacked))
            except (RuntimeError, ValueError, TypeError) as error:
                if is_out_of_memory(error):
                    raise
                raise CannotBatchError(f"vmap: {error}") from error
            if not isinstance(outputs, Tensor):
                raise CannotBatchError(f"the model returns a {type(outputs).__name__}")
            return outputs.unbind(0)

        return self._means(forward, count)

    @check_arguments
    def outputs(self, weights: Mapping[str, Tensor], inputs: Any) -> Any:
        """Call the model with these weights. Differentiable with respect to them; its own errors are passed on.

        Args:
            weights: As `checked` returns them.
            inputs: A tensor, a tuple or list (positional arguments) or a dict (keyword arguments), on the device.
        """
        # Running statistics take no gradient: batch_norm has none for them.
        live = {name: tensor.detach() if name in self._buffers else tensor for name, tensor in weights.items()}
        return call_with(self.model, live, inputs)

    @check_arguments
    def loss_on(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Compute the mean loss on one batch; differentiable with respect to the parameters.

        Args:
            weights: As for `outputs`.
            batch: Samples on the device.

        Raises:
            TaskError: The model or the loss fails on the batch.
        """
        with batch.named_in_errors():
            return torch.as_tensor(self.loss(self.outputs(weights, batch.inputs), batch.targets))

    @check_arguments
    def checked(self, weights: Weights) -> dict[str, Tensor]:
        """Bring weights to the task's device, as a dictionary that is complete and has the model's shapes.

        Names of tied tensors that were left out are filled in from their twins. Floating-point weights get the dtypes
        of the model, which its inputs are made for.

        Raises:
            TaskError: Tensors are missing, unexpected or of another shape; every one is listed. Or a weight overflows
                the dtype of the model.
        """
        state = _tensors(weights)
        for name, tensor in state.items():
            try:
                check_name(name)
            except ValueError as error:
                raise TaskError(f"the weights do not fit the task: {error}.") from error
            if (kind := why_no_values(tensor)) is not None:
                raise TaskError(f"the weights do not fit the task: {name!r} is not a dense tensor, but {kind}.")
        fit = Fit(self._shapes, self._first_names, "the model")
        fit.check_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, "the weights")
        fit.raise_if_any(TaskError, f"the weights do not fit the task's model {type(self.model).__name__}")
        check_hidden_state({"the task's model": self.model, "the network": weights}, TaskError)
        twins = {self._first_names[name]: tensor for name, tensor in state.items()}
        whole = {name: state.get(name, twins[first]) for name, first in self._first_names.items()}
        return {name: self._ready(name, tensor) for name, tensor in whole.items()}

    def _ready(self, name: str, tensor: Tensor) -> Tensor:
        """Bring one tensor to the device and the dtype in which the model runs on it."""
        dtype = self.dtype_for(name, tensor)
        return (tensor if dtype == tensor.dtype else narrow(tensor, dtype, name, TaskError)).to(self.device)

    @check_arguments
    def dtype_for(self, name: str, tensor: Tensor) -> torch.dtype:
        """Return the dtype in which the model runs on a tensor of weights: its own, where both are floating-point."""
        own, models = tensor.dtype, self._dtypes.get(name, tensor.dtype)
        return models if own.is_floating_point and models.is_floating_point else own

    @check_arguments
    def has_dtypes_of(self, weights: Weights) -> bool:
        """Tell whether the task runs these weights in the dtypes that they have."""
        return all(self.dtype_for(name, tensor) == tensor.dtype for name, tensor in _tensors(weights).items())

    @check_arguments
    def network(self, weights: Weights) -> nn.Module:
        """Return the model with these weights, copied, in eval mode and on the task's device.

        Ties are kept, but for heads that have other weights than the embedding that they are tied to in the model.

        Raises:
            TaskError: The weights do not fit the model; every mismatch is listed.
        """
        state = self.checked(weights)
        pairs = ((name, first) for name, first in self._first_names.items() if name != first)
        untied = [name for name, first in pairs if not torch.equal(state[name], state[first])]
        model = module_with(self.model, {}, untied) if untied else self.model
        filled: dict[int, Any] = {}
        for name, parameter in model.named_parameters():
            filled[id(parameter)] = nn.Parameter(state[name].detach().clone(), requires_grad=False)
        for name, buffer in model.named_buffers():
            if name in state:
                filled[id(buffer)] = state[name].detach().clone()
        return copy.deepcopy(model, filled)

    @check_arguments
    def bytes_for(self, weights: Weights) -> int:
        """Estimate the memory of one forward call: the weights and the two largest outputs of modules.

        Args:
            weights: A module of the same architecture, or its state dict.
        """
        state = self.checked(weights)
        largest = 0

        def record(module: nn.Module, inputs: Any, outputs: Any) -> None:
            nonlocal largest
            largest = max(largest, sum(tensor.nbytes for tensor in tensors_in(outputs)))

        hooks = [module.register_forward_hook(record) for module in self.model.modules()]
        try:
            batch = next(iter(self.batches))
            with torch.no_grad(), batch.named_in_errors():
                self.outputs(state, batch.head(self._rows or batch.size).to(self.device).inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return sum(tensor.nbytes for tensor in state.values()) + 2 * largest

    def _means(self, forward: Forward, count: int) -> list[TaskResult]:
        """Compute means over all batches, for each of the ``count`` outputs that ``forward`` returns."""
        with watched_state("the model, the loss, the metric or the data of the task", (*SWITCHES, *FILTERS)):
            return self._sum_up(forward, count)

    def _sum_up(self, forward: Forward, count: int) -> list[TaskResult]:
        totals, samples = torch.zeros(1 if self.metric is None else 2, count, dtype=torch.float64), 0
        for batch in self.batches:
            start = 0
            while start < batch.size:
                rows = min(self._rows or batch.size, batch.size - start)
                part = batch.rows(start, start + rows) if batch.splittable else batch
                values = self._attempt(forward, part, count)
                if values is not None:  # else out of memory: the smaller chunk is tried on the same samples
                    totals += part.size * values
                    samples += part.size
                    start += part.size
        losses, *metrics = (totals / samples).tolist()
        both = zip(losses, metrics[0] if metrics else [None] * count, strict=True)
        return [TaskResult(loss, metric, samples) for loss, metric in both]

    def _attempt(self, forward: Forward, part: Batch, count: int) -> Tensor | None:
        """Compute losses, and metrics, ``[1 or 2, count]`` of one chunk, or make the chunk smaller and return None."""
        measures = {"loss": self.loss} | ({} if self.metric is None else {"metric": self.metric})
        try:
            with torch.no_grad():
                part = part.to(self.device)
                every = forward(part.inputs)
                values = [
                    [scalar(m, measures[m](outputs, part.targets), part.name) for outputs in every] for m in measures
                ]
                return torch.tensor(values, dtype=torch.float64)
        except AlignkitError:
            raise
        except Exception as error:  # the model, the loss and the metric are the user's: anything can happen here
            if not is_out_of_memory(error):
                raise TaskError(f"the model fails on {part.label}: {describe_error(error)}") from error
            if count > 1:
                raise OutOfMemoryError(str(error)) from error
            if part.size == 1 or not part.splittable:
                why = "is one sample" if part.size == 1 else "cannot be split (axis 0 does not count its samples)"
                raise TaskError(f"out of memory on {part.label}, which {why}: {error}") from error
        self._rows = (part.size + 1) // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None


def call_with(model: nn.Module, weights: Mapping[str, Tensor], inputs: Any) -> Any:
    """Call a model with other weights; tied tensors may be given under all their names.

    Args:
        model: The architecture.
        weights: Tensors by name.
        inputs: A tensor, a tuple or list (positional arguments) or a dict (keyword arguments).
    """
    arguments, keywords = call_arguments(inputs)
    return torch.func.functional_call(model, dict(weights), arguments, keywords, tie_weights=False, strict=False)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that an accelerator or the host has no memory left."""
    says_so = any(words in str(error) for words in ("out of memory", "DefaultCPUAllocator"))
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and says_so)


def _tensors(weights: Weights) -> dict[str, Tensor]:
    """List every tensor of a state dict or a module, tied ones under all their names."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    return {name: state[name] for name in state if isinstance(state[name], Tensor)}
