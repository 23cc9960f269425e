"""Balancing in closed form: the point of least norm among all equal networks.

What writes a space may take a matrix ``g`` and what reads it ``g^-T``. Of all networks that are so made, those of the
least sum of squares are one up to an isometry (Kempf and Ness, "The length of vectors in representation spaces", 1979).
So two networks that differ by scales or invertible matrices differ by signs, phases or rotations once both are
balanced.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from jaxtyping import Float
from networkx import Graph, connected_components
from torch import Tensor

from alignkit.graph.phases import phases_in
from alignkit.graph.rewrites import AnyBalance, Balance, Phase, uses_at
from alignkit.graph.structure import GraphStructure
from alignkit.graph.uses import Use
from alignkit.rewriting.phases import bring_phases, follow_phases, phases_apart
from alignkit.rewriting.recurrent import READS, WRITES, recurrent_scales
from alignkit.rewriting.spaces import BalancedSpace
from alignkit.rewriting.unit_signs import unit_signs
from alignkit.rewriting.wide import WideWeights

SETTLED = 1e-13
"""A sweep that changes no space by more than this, relative to its size, is the last."""
MAX_SWEEPS = 10_000
"""Spaces that share a tensor are balanced in turn; some five sweeps for each layer in a row are usual."""
RANK = 1e-13
"""Singular values below this share of the largest are rounding of a matrix of smaller rank."""
FOREIGN = 0.28
"""Logarithm of the factors between two balanced networks from which one is no fine-tune of the other. Transformers that
were tuned for 200 steps had 0.04 at most, layers of six units with noise of a tenth of the weights 0.27, and networks
with planted factors of 0.3 to 3 at least 0.29."""
Side = Float[Tensor, "instances units rest"]


def balance_weights(
    weights: WideWeights, graph: GraphStructure, balances: Iterable[AnyBalance] | None = None
) -> list[BalancedSpace]:
    """Balance spaces of a graph in place, all of ``graph.balances`` by default, and bring phases to the nearest of 0.

    The function of the network stays. Of all balanced networks it becomes the one nearest to what it was, up to signs
    that no group holds, so that balancing twice is balancing once, and commutes with isometries such as permutations of
    units.

    Raises:
        FoldError: A tensor holds whole numbers.
    """
    wanted = list(graph.balances if balances is None else balances)
    # First, since balances choose signs by those that phases change.
    spaces = [bring_phases(weights, graph, phase) for phase in wanted if isinstance(phase, Phase)]
    spaces += _balance_sides(weights, graph, [balance for balance in wanted if isinstance(balance, Balance)])
    known = {space.balance: space for space in spaces}
    return [known[balance] for balance in wanted]


def _balance_sides(weights: WideWeights, graph: GraphStructure, balances: Iterable[Balance]) -> list[BalancedSpace]:
    """Balance spaces in place between their two sides."""
    spaces = [_Space(weights, graph, balance) for balance in balances]
    before = [space.squares() for space in spaces]
    for component in _sharing(spaces):
        # Successive over-relaxation with the factor that is best for a chain (Young, "Iterative methods for solving
        # partial difference equations of elliptic type", 1954): sweeps grow with its length, and not with the square.
        relaxation = 2 / (1 + math.sin(math.pi / (len(component) + 1)))
        for _ in range(MAX_SWEEPS):
            change = max(space.balance_once(relaxation) for space in component)
            if len(component) == 1 or change < SETTLED:
                break
    for _ in spaces:  # signs of one space may go with those that another one chooses
        if not _settle_signs(weights, graph, spaces):
            break
    return [
        BalancedSpace(s.balance, old, s.squares(), s.empty, s.write, s.read)
        for s, old in zip(spaces, before, strict=True)
    ]


def _settle_signs(weights: WideWeights, graph: GraphStructure, spaces: Sequence[_Space]) -> bool:
    """Choose the signs of units where factors may have any, and the kind of the group holds none.

    Return whether one changed.
    """
    changed = False
    signed = [space for space in spaces if space.balance.kind == "monomial"]
    for group in dict.fromkeys(space.balance.group for space in signed):
        if graph.groups[group].kind == "signed":
            continue
        own = [space for space in signed if space.balance.group == group]
        for space, signs in zip(
            own, unit_signs(weights, graph, group, [(s.writes, s.reads) for s in own]), strict=True
        ):
            for use in (*space.writes, *space.reads):
                multiply_units(weights[use.tensor], use, signs)
            space.write, space.read = space.write * signs, space.read * signs
            changed = changed or bool((signs < 0).any())
    return changed


def follow_balances(
    weights: WideWeights, graph: GraphStructure, spaces: Iterable[BalancedSpace]
) -> list[BalancedSpace]:
    """Balance the spaces of a fine-tune in place as those of its base were, so that what lies between stays between.

    What would balance it tells where it stands. If that is nearer to nothing than to what balanced the base, it was
    balanced before, and is left as it is. If it is far from both, the fine-tune has scales or an order of its own, and
    is balanced by itself. So are phases.

    Raises:
        FoldError: A tensor holds whole numbers.
    """
    known = {space.balance: space for space in spaces}
    followed: dict[AnyBalance, BalancedSpace] = {
        balance: follow_phases(weights, graph, space) for balance, space in known.items() if isinstance(balance, Phase)
    }
    sides = [_Space(weights, graph, balance) for balance in known if isinstance(balance, Balance)]
    for component in _sharing(sides):
        names = {use.tensor for space in component for use in graph.uses[space.balance.group]}
        trial = WideWeights({name: weights[name] for name in names if name in weights})
        alone = _balance_sides(trial, graph, [space.balance for space in component])
        like = [known[space.balance] for space in component]
        as_it_is = [replace(space, write=own.write, read=own.read) for space, own in zip(like, component, strict=True)]
        far_from_base, far_from_nothing = (_how_far(alone, way) for way in (like, as_it_is))
        way = like if far_from_base <= far_from_nothing else as_it_is
        way = alone if min(far_from_base, far_from_nothing) > FOREIGN else way
        followed |= {space.balance: space for space in multiply_spaces(weights, graph, way)}
    return [followed[balance] for balance in known]


def spaces_apart(graph: GraphStructure, a: WideWeights, b: WideWeights) -> list[str]:
    """Return the groups in which two networks of one order differ by scales, matrices or phases; both are balanced."""
    apart = [phase.group for phase in phases_in(graph) if phases_apart(a, graph, phase, b)]
    sides = [balance for balance in graph.balances if isinstance(balance, Balance)]
    pairs = zip(*(_balance_sides(weights, graph, sides) for weights in (a, b)), strict=True)
    return apart + [one.balance.group for one, other in pairs if _how_far([one], [other]) > FOREIGN]


def _how_far(spaces: Sequence[BalancedSpace], others: Sequence[BalancedSpace]) -> float:
    """Return the root mean square of the logarithms of factors that lie between two ways to balance the same spaces."""
    logarithms = []
    for space, other in zip(spaces, others, strict=True):
        (own, _), (base, _) = _reversible(space), _reversible(other)
        is_matrix = space.balance.kind == "invertible"
        ratio = torch.linalg.svdvals(own @ torch.linalg.inv(base)) if is_matrix else own / base
        logarithms.append(ratio.abs().log().flatten())
    return float(torch.cat(logarithms).square().mean().sqrt())


def multiply_spaces(
    weights: WideWeights, graph: GraphStructure, spaces: Iterable[BalancedSpace]
) -> list[BalancedSpace]:
    """Multiply both sides of spaces of a network in place by what those of another one were multiplied by.

    Where balancing set a unit or a direction to 0, because one side of it was empty in the other network, it stays as
    it is here.

    Raises:
        FoldError: A tensor holds whole numbers.
    """
    multiplied = []
    for known in spaces:
        assert isinstance(known.balance, Balance)
        space = _Space(weights, graph, known.balance)
        before = space.squares()
        space.write, space.read = _reversible(known)
        for uses, factor in ((space.writes, space.write), (space.reads, space.read)):
            for use in uses:
                multiply_units(weights[use.tensor], use, factor)
        multiplied.append(BalancedSpace(known.balance, before, space.squares(), 0, space.write, space.read))
    return multiplied


def _reversible(space: BalancedSpace) -> tuple[Tensor, Tensor]:
    """Return the factors of a balanced space, with 1 in place of what takes a unit or a direction away."""
    if space.balance.kind != "invertible":
        empty = (space.write == 0) | (space.read == 0)
        return torch.where(empty, 1.0, space.write), torch.where(empty, 1.0, space.read)
    left, values, right = torch.linalg.svd(space.write)
    values = torch.where(values > RANK * values[..., :1], values, 1.0)
    return (left * values[..., None, :]) @ right, (left / values[..., None, :]) @ right


def sides_of(graph: GraphStructure, balance: Balance) -> tuple[list[Use], list[Use]]:
    """List where a group acts on what writes its space, and on what reads it."""
    writes, reads = (
        [use for at in places for use in uses_at(graph.tensors[at.tensor], balance.group, at)]
        for places in (balance.writes, balance.reads)
    )
    return writes, reads


def multiply_units(tensor: Tensor, use: Use, factor: Tensor) -> None:
    """Multiply the units of a use of a tensor in place: by a factor each, ``[instances, units]``, or by a matrix."""
    view = use.block.view(tensor)
    if factor.ndim == 2:  # without a copy: fold --memory counts them
        view *= use.broadcast(factor.to(view))
    else:
        view.copy_(multiplied(view, use, factor))


def multiplied(part: Tensor, use: Use, factor: Tensor) -> Tensor:
    """Return the elements of a block whose units are multiplied: by a factor each, or by a matrix; differentiable."""
    if factor.ndim == 2:
        return part * use.broadcast(factor.to(part))
    order = [*use.chain, *use.rest]
    products = (factor.to(part) @ use.unfold(part)).reshape([part.shape[dim] for dim in order])
    return products.permute([order.index(dim) for dim in range(part.ndim)])


def _sharing(spaces: Sequence[_Space]) -> list[list[_Space]]:
    """Split spaces into those that have to be balanced in turn, because they share a part of a tensor."""
    links: Graph = Graph()
    for number, space in enumerate(spaces):
        links.add_node(number)
        links.add_edges_from((number, (use.tensor, use.block.offsets)) for use in (*space.writes, *space.reads))
    parts = [sorted(n for n in part if isinstance(n, int)) for part in connected_components(links)]
    return [[spaces[number] for number in part] for part in sorted(parts)]


class _Space:
    """One balance on the weights of one network."""

    def __init__(self, weights: WideWeights, graph: GraphStructure, balance: Balance) -> None:
        self.weights, self.balance = weights, balance
        self.writes, self.reads = sides_of(graph, balance)
        uses = [(use, WRITES) for use in self.writes] + [(use, READS) for use in self.reads]
        self.between = [
            (one, other) for one, other in combinations(uses, 2) if _block_of(one[0]) == _block_of(other[0])
        ]
        """Where a tensor stands between units of the space, with what it does to those of each of its axes."""
        self.adjacent = graph.groups[balance.group].kind == "adjacent_planes"
        self.empty = 0
        shape = (graph.instances(balance.group), graph.groups[balance.group].size)
        one = torch.ones(shape, dtype=torch.float64)
        self.write = self.read = one.diag_embed() if balance.kind == "invertible" else one

    def squares(self) -> float:
        blocks = {_block_of(use): use for use in (*self.writes, *self.reads)}
        return sum(float(use.block.view(self.weights[use.tensor]).square().sum()) for use in blocks.values())

    def balance_once(self, relaxation: float) -> float:
        """Balance the space, scales with a relaxation, and return by how much it changed, relative to its size."""
        if self.between:
            return self._balance_recurrent()
        x, y = (torch.cat([self._part(use) for use in side], -1) for side in (self.writes, self.reads))
        match self.balance.kind:
            case "scaled" | "monomial":
                new_x, new_y, self.empty = balanced_scales(x, y, self.balance.degree, relaxation)
                factors = [_growth(old, new) for old, new in ((x, new_x), (y, new_y))]
            case "complex_planes":
                in_planes = _as_planes(x, self.adjacent), _as_planes(y, self.adjacent)
                new_x, new_y, self.empty = balanced_scales(in_planes[0], in_planes[1])
                growths = [_growth(old, new) for old, new in zip(in_planes, (new_x, new_y), strict=True)]
                factors = [g.repeat_interleave(2, -1) if self.adjacent else g.repeat(1, 2) for g in growths]
                new_x, new_y = (_from_planes(side, self.adjacent) for side in (new_x, new_y))
            case "invertible":
                new_x, new_y, self.empty = balanced_matrices(x, y)
                factors = [new @ torch.linalg.pinv(old) for old, new in ((x, new_x), (y, new_y))]
        is_matrix = self.balance.kind == "invertible"
        self.write, self.read = (
            factor.cpu() @ old if is_matrix else factor.cpu() * old
            for factor, old in zip(factors, (self.write, self.read), strict=True)
        )
        for side, values in ((self.writes, new_x), (self.reads, new_y)):
            at = 0
            for use in side:
                part = self._target(use)
                width = part.numel() // use.unit_count
                part.copy_(values[..., at : at + width].reshape(part.shape))
                at += width
        size = max(float(x.norm()), float(y.norm()))
        return max(float((new_x - x).norm()), float((new_y - y).norm())) / size if size else 0.0

    def _balance_recurrent(self) -> float:
        """Balance a space that a tensor stands in, and return the logarithm of its largest factor."""
        blocks = {_block_of(use) for (use, _), _ in self.between}
        outside = [[use for use in side if _block_of(use) not in blocks] for side in (self.writes, self.reads)]
        written, read = (
            sum((self._part(use).square().sum(-1).cpu() for use in side), torch.zeros_like(self.write)).flatten()
            for side in outside
        )
        count = len(written)
        between: dict[tuple[int, int], Tensor] = {}
        for (row, row_power), (column, column_power) in self.between:
            squares = row.block.view(self.weights[row.tensor]).square().cpu()
            rows, columns = (use.broadcast(torch.arange(count)) for use in (row, column))
            summed = torch.zeros(count * count, dtype=torch.float64)
            summed.index_add_(0, (rows * count + columns).expand(squares.shape).flatten(), squares.flatten())
            powers = row_power, column_power
            between[powers] = between.get(powers, 0) + summed.view(count, count)
        flat, self.empty = recurrent_scales(written, read, between)
        scales = flat.view_as(self.write)
        inverse = torch.where(scales > 0, 1 / torch.where(scales > 0, scales, 1.0), 0.0)
        for side, factor in ((self.writes, scales), (self.reads, inverse)):
            for use in side:
                multiply_units(self.weights[use.tensor], use, factor)
        self.write, self.read = self.write * scales, self.read * inverse
        moved = scales[scales > 0].log().abs()
        return float(moved.max()) if len(moved) else 0.0

    def _target(self, use: Use) -> Tensor:
        return use.block.view(self.weights[use.tensor]).permute(*use.chain, *use.rest)

    def _part(self, use: Use) -> Side:
        return use.unfold(use.block.view(self.weights[use.tensor]))


def _growth(old: Side, new: Side) -> Float[Tensor, "instances units"]:
    """Return the positive factor by which each row grew; 0 for rows of zeros."""
    before, after = (torch.linalg.vector_norm(side, dim=-1) for side in (old, new))
    growth: Tensor = after / torch.where(before > 0, before, 1.0)
    return growth


def balanced_scales(x: Side, y: Side, degree: int = 1, relaxation: float = 1.0) -> tuple[Side, Side, int]:
    """Scale each unit so that ``s^2 |x|^2 + |y|^2 / s^(2 degree)`` is the least: ``x s`` and ``y / s^degree``.

    Where one side of a unit is 0, so becomes the other: that is the limit of its scales. With a ``relaxation`` above 1
    scales go beyond the least, for spaces that are balanced in turn.

    Returns:
        Both sides, and the number of units with an empty side.
    """
    norms = [torch.linalg.vector_norm(side, dim=-1, keepdim=True) for side in (x, y)]
    full = (norms[0] > 0) & (norms[1] > 0)
    ratio = torch.where(full, norms[1], 1.0) / torch.where(full, norms[0], 1.0)
    scale = (degree**0.5 * ratio) ** (relaxation / (1 + degree))
    empty = int((~full).sum())
    return torch.where(full, x * scale, 0.0), torch.where(full, y / scale**degree, 0.0), empty


def balanced_matrices(x: Side, y: Side) -> tuple[Side, Side, int]:
    """Return the balanced sides of the same product ``x^T y``, one matrix an instance: ``x x^T = y y^T``.

    With ``x^T y = U S V^T`` these are ``S^1/2 U^T`` and ``S^1/2 V^T``, up to a rotation; that one is taken which leaves
    both sides nearest to what they were. The product is never formed: QR brings both sides to ``units`` columns first.

    Returns:
        Both sides, and the number of directions that one of them does not reach.
    """
    (basis_x, small_x), (basis_y, small_y) = (torch.linalg.qr(side.mT) for side in (x, y))
    left, values, right = torch.linalg.svd(small_x @ small_y.mT, full_matrices=False)
    values = torch.where(values > RANK * values[..., :1], values, 0.0)
    root = values.sqrt()[..., None]
    new_x, new_y = root * (basis_x @ left).mT, root * (basis_y @ right.mT).mT
    turned, _, back = torch.linalg.svd(x @ new_x.mT + y @ new_y.mT, full_matrices=False)
    rotation = turned @ back
    empty = x.shape[0] * x.shape[1] - int((values > 0).sum())
    return rotation @ new_x, rotation @ new_y, empty


def _block_of(use: Use) -> tuple[str, tuple[int, ...]]:
    return use.tensor, use.block.offsets


def _as_planes(side: Side, adjacent: bool) -> Float[Tensor, "instances planes both"]:
    """Bring the two dimensions of each rotary plane into one row: neighbours, or those half the size apart."""
    instances, size, _ = side.shape
    pairs = (
        side.view(instances, size // 2, 2, -1) if adjacent else side.view(instances, 2, size // 2, -1).transpose(1, 2)
    )
    return pairs.flatten(2)


def _from_planes(rows: Float[Tensor, "instances planes both"], adjacent: bool) -> Side:
    pairs = rows.view(*rows.shape[:2], 2, -1)
    return (pairs if adjacent else pairs.transpose(1, 2)).flatten(1, 2)
