"""Own texts: what two networks write themselves, in place of texts that they learned from.

A network that says which token comes next knows what texts are like. Random tokens are far from them, and what units do
there says little. So both networks write: every token is drawn from the mean of what both expect after those before it.
All tokens are drawn at once and by the same chance in every round, so that texts settle from the left to the right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignkit.deepalign.aligner import AlignerInput
from alignkit.deepalign.midpoint import SAMPLES
from alignkit.deepalign.probing import Probed
from alignkit.errors import TaskError
from alignkit.tasks.batches import Batch, map_tensors, tensors_in
from alignkit.tasks.goals import judged_outputs
from alignkit.tasks.measures import next_token
from alignkit.tasks.task import Task

ROUNDS = 16
"""Most rounds. After as many as a text has tokens nothing changes any more, and most texts settle sooner."""
MAX_LOGITS = 1 << 26
"""Logits of all texts above which networks write none: they take 512 MB in float64."""
MAX_PRODUCTS = 10**13
"""Products of weights and tokens in all rounds above which networks write none: they take a core some ten minutes."""
LOGITS_AT_ONCE = 1 << 22
"""Logits of one forward call."""
UNCHANGED = 1e-3
"""Change of logits, as a share of the largest, below which they are the same but for rounding."""


def write_texts(probed: Probed, count: int) -> Probed:
    """Let a pair be run on texts that both networks write, where it would be run on random tokens.

    Args:
        probed: The pair, and what it would be run on.
        count: Number of probes.

    Returns:
        The same on own texts; as it was where inputs are not tokens, or outputs do not say which token comes next.
    """
    pair, task = probed.pair, probed.task
    if task is None or pair.probing is None or probed.draw is None or probed.alike:
        return probed
    try:
        writers = _find_writers(task, pair, probed.draw)
        if writers is None:
            return probed
        batch = writers.write(count)
    except TaskError:  # the model does not take other tokens, or as many texts
        return probed
    alike = f"texts of {writers.length} tokens that both networks write"
    on_texts = replace(pair, probing=replace(pair.probing, batch=batch.to(task.device)))
    return Probed(on_texts, f"{count} {alike}", writers.task, writers.write, alike)


@dataclass(frozen=True)
class _Writers:
    """Two networks that write together.

    Attributes:
        task: Runs them; its loss says that outputs are logits of the next token.
        pair: The networks, their weights in the form that the model takes.
        draw: Draws so many random inputs, the same at every call.
        place: Which of the inputs holds the tokens.
        length: Tokens of a text.
        vocabulary: Number of different tokens.
    """

    task: Task
    pair: AlignerInput
    draw: Callable[[int], Batch]
    place: int
    length: int
    vocabulary: int

    def write(self, count: int) -> Batch:
        """Write so many texts, the same at every call.

        Raises:
            TaskError: The model fails on them, or its logits are not finite.
        """
        batch = self.draw(count)
        for _ in range(ROUNDS):
            old, following = tensors_in(batch.inputs)[self.place], torch.cat([*self._continued(batch)])
            new = torch.cat([old[:, :1], following[:, :-1]], 1)
            if torch.equal(new, old):
                break
            batch = _with_tokens(batch, self.place, new)
        return batch

    def _continued(self, batch: Batch) -> Iterator[Int[Tensor, "texts tokens"]]:
        """Draw what comes after each token of each text, by the same chance at every call."""
        generator = torch.Generator().manual_seed(self.pair.seed)
        for piece in batch.pieces(max(1, LOGITS_AT_ONCE // (self.length * self.vocabulary))):
            a, b = (_logits(self.task, piece, side).softmax(-1) for side in (self.pair.a, self.pair.b))
            chances = torch.lerp(a, b, 0.5).cpu()
            if not bool(torch.isfinite(chances).all()):
                raise TaskError(f"logits of {piece.label} hold NaN or infinity.")
            # The first to come of events with these rates is each token by its chance.
            yield (chances / torch.empty_like(chances).exponential_(generator=generator)).argmax(-1)


def _find_writers(task: Task, pair: AlignerInput, draw: Callable[[int], Batch]) -> _Writers | None:
    """Find out whether networks say which token of their vocabulary comes next; None if they do not."""
    batch = draw(2)
    inputs = tensors_in(batch.inputs)
    whole = [at for at, tensor in enumerate(inputs) if tensor.ndim == 2 and tensor.dtype in (torch.int32, torch.int64)]
    # Masks of ones are none.
    places = [at for at in whole if bool((inputs[at] != inputs[at][0, 0]).any())]
    if len(places) != 1 or not batch.splittable or inputs[places[0]].shape[1] < 2:
        return None
    tokens, (place,) = inputs[places[0]], places
    reading = Task(task.model, [(batch.inputs, batch.targets)], next_token, device=task.device)
    logits = _logits(reading, batch, pair.a)
    vocabulary = logits.shape[-1] if logits.shape[:-1] == tokens.shape else 0
    tables = {module.num_embeddings for module in task.model.modules() if isinstance(module, nn.Embedding)}
    written, weights = SAMPLES * tokens.shape[1], sum(tensor.numel() for tensor in pair.a.values())
    too_much = written * vocabulary > MAX_LOGITS or 2 * ROUNDS * written * weights > MAX_PRODUCTS
    if vocabulary not in tables or too_much:
        return None
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % vocabulary
    change = (_logits(reading, _with_tokens(batch, place, other), pair.a) - logits).abs().amax((0, 2)).cpu()
    # Only where reading goes from left to right is a next token predicted: the last one changes no logits before it.
    if not float(change[:-1].max()) <= UNCHANGED * float(logits.abs().max()) < float(change[-1]):
        return None
    return _Writers(reading, pair, draw, place, tokens.shape[1], vocabulary)


def _with_tokens(batch: Batch, place: int, tokens: Int[Tensor, "texts tokens"]) -> Batch:
    """Put other tokens into a batch."""
    old = tensors_in(batch.inputs)[place]
    return replace(batch, inputs=map_tensors(lambda one: tokens.to(old.dtype) if one is old else one, batch.inputs))


@torch.no_grad()
def _logits(task: Task, batch: Batch, weights: Mapping[str, Tensor]) -> Float[Tensor, "texts tokens vocabulary"]:
    """Run one network."""
    return judged_outputs(task, batch.to(task.device), weights)[0]
