"""Stand-ins for data: those random inputs that two networks answer as they answer data.

Networks of classes are sure about inputs like those that they learned from, and undecided about most random ones. A few
random inputs look to both like one of the classes. Taken evenly over the classes, they tell midpoint steps enough of
what the networks do on data, where plain noise does harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignkit.deepalign.aligner import AlignerInput
from alignkit.deepalign.input_domain import MIDDLE_INPUTS, InputDomain
from alignkit.deepalign.midpoint import SAMPLES
from alignkit.deepalign.probing import Probed
from alignkit.tasks.batches import Batch, map_tensors
from alignkit.tasks.goals import judged_outputs
from alignkit.tasks.measures import mse
from alignkit.tasks.minibatches import first_batches
from alignkit.tasks.task import Task

DRAWN = 4096
"""Random inputs to choose from. With half as many barriers are higher, with twice as many hardly lower."""
MAX_NUMBERS = 1 << 24
"""Numbers in all random inputs above which there are no stand-ins: to run so many large inputs takes minutes."""
SURE = 0.6
"""Mean probability that both give to the likeliest class from which on they count as sure. It is 0.7 and more on inputs
that were chosen for image classifiers. Outputs that are no logits, such as colours, do not look like one class each."""
BLUR = 1 / 56
"""Standard deviation of the blur of random images, as a share of their side: half a pixel for 28 of them. It was chosen
on networks that domain aligners of such images are trained on."""
ROWS = 512
"""Random inputs in one forward call."""
SHORTER = 0.5
"""Length of midpoint steps on stand-ins as a share of that on data, which they only resemble. On nine sets of networks
that no table holds barriers were 0.985 of those with whole steps (geometric mean), between 0.91 on networks 256-256,
where probes alone are at their best, and 1.05."""


@dataclass(frozen=True)
class MiddleInputs:
    """What midpoint steps run on.

    Attributes:
        task: Runs the networks; its loss tells what outputs are.
        batches: The inputs, on the task's device.
        why: What the inputs are, in words.
        length: Length of steps on them as a share of the usual.
    """

    task: Task
    batches: Sequence[Batch]
    why: str
    length: float = 1.0


def find_middle_inputs(probed: Probed, *, anything: bool) -> MiddleInputs | None:
    """Find what midpoint steps run on: data of the task, inputs like data, or stand-ins.

    Args:
        probed: The pair, and what it was run on.
        anything: Take the random inputs of the probes where there are no stand-ins.

    Returns:
        The inputs, None where there are none.
    """
    task, pair = probed.task, probed.pair
    if task is None or pair.probing is None:
        return None
    if probed.draw is None:
        batches = first_batches(task, SAMPLES)
        return MiddleInputs(task, batches, f"{sum(batch.size for batch in batches)} inputs of the task")
    if probed.alike:
        batch = probed.draw(probed.middle_count)
        task = Task(task.model, [(batch.inputs, batch.targets)], task.loss, device=task.device, chunk=ROWS)
        return MiddleInputs(task, first_batches(task, batch.size), f"{batch.size} {probed.alike}")
    chosen = stand_ins(task, pair, probed.draw)
    if chosen is not None:
        why = f"{SAMPLES} of {DRAWN} random inputs, on which both networks are sure"
        return MiddleInputs(chosen, first_batches(chosen, SAMPLES), why, SHORTER)
    batch = pair.probing.batch
    return MiddleInputs(task, [batch], f"{batch.size} random inputs") if anything else None


def domain_inputs(domain: InputDomain, model: nn.Module, device: torch.device, seed: int) -> MiddleInputs:
    """Draw what midpoint steps run on from a domain, for networks of an architecture."""
    inputs = domain.draw(MIDDLE_INPUTS, torch.Generator().manual_seed(seed))
    loss = "cross_entropy" if domain.classes else "mse"
    task = Task(model, [(inputs, torch.zeros(len(inputs), dtype=torch.long))], loss, device=device, chunk=ROWS)
    return MiddleInputs(task, first_batches(task, len(inputs)), f"{len(inputs)} inputs of the domain")


def stand_ins(task: Task, pair: AlignerInput, draw: Callable[[int], Batch]) -> Task | None:
    """Choose random inputs on which both networks are sure, evenly over the classes that they see.

    Args:
        task: Runs the networks.
        pair: The networks, their weights in the form that the model takes.
        draw: Draws so many random inputs, the same at every call.

    Returns:
        A task of `SAMPLES` chosen inputs whose loss says that outputs are logits; None where networks do not tell
        classes apart, or are not sure about any random inputs.
    """
    first = draw(1)
    if (
        task.loss is mse
        or not first.splittable
        or DRAWN * sum(tensor.numel() for tensor in first.tensors) > MAX_NUMBERS
    ):
        return None
    drawn = _of_classes(task, blurred(draw(DRAWN)))
    likeliest, entropies = [], []
    for batch in drawn.batches:
        with torch.no_grad():
            a, b = (judged_outputs(drawn, batch.to(task.device), side)[0] for side in (pair.a, pair.b))
        if a.ndim != 2 or a.shape[1] < 2:
            return None
        probabilities = torch.lerp(a.softmax(1), b.softmax(1), 0.5)
        likeliest.append(probabilities.max(1))
        entropies.append(torch.special.entr(probabilities).sum(1))
    probability, classes = (torch.cat(parts).cpu() for parts in zip(*likeliest, strict=True))
    rows = evenly_sure(torch.cat(entropies).cpu(), classes, SAMPLES)
    if not float(probability[rows].mean()) >= SURE:
        return None
    return _of_classes(task, blurred(draw(DRAWN).pick(rows)))


def blurred(batch: Batch) -> Batch:
    """Blur random images ``[n, channels, height, width]``, whose pixels keep their variance; other inputs stay."""

    def blur(side: int) -> Float[Tensor, "side side"]:
        apart = torch.arange(side)[:, None] - torch.arange(side)
        kernel = torch.exp(-(apart**2) / (2 * (BLUR * side) ** 2))
        return kernel / kernel.square().sum(1, keepdim=True).sqrt()

    def change(tensor: Tensor) -> Tensor:
        if tensor.ndim != 4 or not tensor.is_floating_point():
            return tensor
        rows, columns = (blur(side).to(tensor) for side in tensor.shape[2:])
        return rows @ tensor @ columns.mT

    return Batch(map_tensors(change, batch.inputs), batch.targets, batch.name)


def evenly_sure(entropies: Float[Tensor, " n"], classes: Int[Tensor, " n"], count: int) -> Int[Tensor, " chosen"]:
    """Return the samples of the lowest entropy, each class in turn as long as it has any."""
    order = entropies.argsort()
    by_class = order[classes[order].argsort(stable=True)]
    sizes = classes.bincount()
    # The how manieth of its class each sample is.
    turn = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[classes[by_class]]
    place = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))
    ranked = (turn * len(order) + place[by_class]).argsort()
    return by_class[ranked[:count]]


def _of_classes(task: Task, batch: Batch) -> Task:
    """Make a task of the same model on other inputs, whose outputs are logits."""
    targets = torch.zeros(batch.size, dtype=torch.long)
    return Task(task.model, [(batch.inputs, targets)], "cross_entropy", device=task.device, chunk=ROWS)
