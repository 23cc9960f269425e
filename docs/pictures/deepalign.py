"""Draw how Deep-Align matches the units of one layer: channels, scores, rounds of consensus, assignment."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor, nn

import alignkit
from alignkit.deepalign import SHIPPED_CHECKPOINT, load_aligner
from alignkit.deepalign.aligner import USUAL
from alignkit.deepalign.consensus import consensus, soft_elements
from alignkit.deepalign.probes import channels, respond
from alignkit.deepalign.probing import find_probing
from alignkit.matching.families import best_element
from alignkit.solver import Problem


def steps(model_a: nn.Module, model_b: nn.Module, example: Tensor, group_at: int) -> tuple[dict[str, Tensor], Tensor]:
    """Matrices of one group, A's units in rows and B's in columns, by the step that gives them; and the assignment.

    Args:
        model_a: Network A.
        model_b: Network B.
        example: Example input of the model.
        group_at: Which group of the traced graph.
    """
    graph = alignkit.trace(model_a, example)
    problem = Problem(graph.bind(model_a, model_b))
    pair = find_probing(problem, 128, "auto", None).pair
    probing = pair.probing
    assert probing is not None
    group = list(graph.groups)[group_at]
    reading = next(r for r in probing.readings[group] if r.site.when == "post")
    responses = [respond(probing, side, 0)[reading][0] for side in (pair.a, pair.b)]
    value, gradient, product = channels(*responses)
    scores = load_aligner(SHIPPED_CHECKPOINT).score(pair)
    agreed = consensus(problem.objective, scores)
    elements = best_element(graph, agreed)
    soft = soft_elements(graph, agreed, USUAL.sharpness)[group]
    assert soft is not None
    shown = {
        "values": value,
        "gradients": gradient,
        "values x gradients": product,
        "scores with the\nlearned channel": scores[group],
        "scores after three\nrounds of consensus": agreed[group],
        "soft alignment": soft,
    }
    return shown, elements[group]


def draw(model_a: nn.Module, model_b: nn.Module, example: Tensor, group_at: int = 1) -> plt.Figure:
    """The picture: one panel a step, B's units in the order that is found in the end."""
    shown, element = steps(model_a, model_b, example, group_at)
    figure, axes = plt.subplots(2, 3, figsize=(8, 5.8), layout="constrained")
    for panel, (title, matrix) in zip(axes.flat, shown.items(), strict=True):
        _panel(panel, title, matrix[:, element])
    return figure


def _panel(panel: Axes, title: str, matrix: Tensor) -> None:
    panel.imshow(matrix.detach().numpy(), cmap="viridis")
    panel.set_title(title, fontsize=10)
    panel.set(xticks=[], yticks=[], xlabel="units of B", ylabel="units of A")
