"""Distances between predicted and observed populations that gradients can pass through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from sccausal._errors import SetupError

DiscrepancyKind = Literal["centroid", "mmd", "energy"]


def centroid_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distance between the means of two populations, without the share that sampling adds.

    Parameters
    ----------
    x, y
        Cells (n, g) and (m, g).

    Returns
    -------
    0-d tensor, summed over genes. The sampling variances of both means are subtracted, so that its expectation is the
    squared distance of the true means and small populations do not look further apart; it can be negative. Populations
    of one cell keep their bias.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import centroid_discrepancy
    >>> x = torch.tensor([[0.0, 0.0], [0.0, 0.0]])  # cells x genes
    >>> centroid_discrepancy(x, x + 1).item()
    2.0
    """
    distance = (x.mean(0) - y.mean(0)).square().sum()
    for cells in (x, y):
        if len(cells) > 1:
            distance = distance - cells.var(0).sum() / len(cells)
    return distance


def mmd_discrepancy(
    x: Tensor, y: Tensor, scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0), bandwidth: Tensor | None = None
) -> Tensor:
    """Squared maximum mean discrepancy, unbiased, with a sum of Gaussian kernels :cite:p:`Gretton2012`.

    Parameters
    ----------
    x, y
        Cells (n, g) and (m, g), at least two each.
    scales
        Factors on the bandwidth; the kernels are averaged.
    bandwidth
        Squared length scale; default the median of the squared distances between ``x`` and ``y`` (not differentiated).

    Returns
    -------
    0-d tensor in [-1, 2]; its expectation is 0 for equal distributions, so it can be negative.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import mmd_discrepancy
    >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> bool(mmd_discrepancy(x[:25] + 2, x[25:]) > mmd_discrepancy(x[:25], x[25:]))
    True
    """
    xy, xx, yy = _squared(x, y), _squared(x, x), _squared(y, y)
    base = torch.median(xy.detach()).clamp_min(1e-12) if bandwidth is None else bandwidth

    def kernel(square: Tensor) -> Tensor:
        return torch.stack([torch.exp(-square / (2 * s * base)) for s in scales]).mean(0)

    return _off_diagonal(xx, kernel) + _off_diagonal(yy, kernel) - 2 * kernel(xy).mean()


def energy_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Energy distance as a U-statistic :cite:p:`Szekely2013`.

    Parameters
    ----------
    x, y
        Cells (n, g) and (m, g), at least two each.

    Returns
    -------
    0-d tensor in the unit of the data; its expectation is 0 for equal distributions, so it can be negative.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import energy_discrepancy
    >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> bool(energy_discrepancy(x[:25] + 2, x[25:]) > energy_discrepancy(x[:25], x[25:]))
    True
    """

    def length(square: Tensor) -> Tensor:
        return torch.sqrt(square + 1e-12)  # the gradient of a root has no value at 0

    return (
        2 * length(_squared(x, y)).mean()
        - _off_diagonal(_squared(x, x), length)
        - _off_diagonal(_squared(y, y), length)
    )


_KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "centroid": centroid_discrepancy,
    "mmd": mmd_discrepancy,
    "energy": energy_discrepancy,
}


def check_discrepancy(kind: str) -> None:
    """Raise :class:`SetupError` if ``kind`` is unknown."""
    if kind not in _KINDS:
        raise SetupError(f"Unknown discrepancy {kind!r}; choose one of {', '.join(get_args(DiscrepancyKind))}.")


def condition_discrepancy(
    predicted: Tensor, observed: Tensor, condition: Tensor, kind: DiscrepancyKind = "centroid", min_cells: int = 2
) -> Tensor:
    """Discrepancy of each condition by itself, averaged over conditions with the numbers of their cells as weights.

    Over a mixed mini-batch, predictions of one condition could pay for those of another; here they cannot.

    Parameters
    ----------
    predicted, observed
        Cells (n, g); row i of both belongs to the same condition.
    condition
        Integer code of the condition of each row (n,).
    kind
        ``"centroid"``, ``"mmd"`` or ``"energy"``.
    min_cells
        Conditions with fewer cells are left out.

    Returns
    -------
    0-d tensor; zero if no condition has enough cells.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import condition_discrepancy
    >>> observed, condition = torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])
    >>> predicted = observed + condition[:, None]  # right for condition 0, wrong for 1
    >>> condition_discrepancy(predicted, observed, condition).item()
    1.0
    """
    check_discrepancy(kind)
    total, weight = predicted.new_zeros(()), 0
    for code in torch.unique(condition):
        rows = torch.nonzero(condition == code).squeeze(1)
        if len(rows) < min_cells:
            continue
        total = total + len(rows) * _KINDS[kind](predicted[rows], observed[rows])
        weight += len(rows)
    return total / max(weight, 1)


def _squared(x: Tensor, y: Tensor) -> Tensor:
    # through the inner products: exact enough here, and without an (n, m, g) tensor
    square = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return square.clamp_min(0.0)


def _off_diagonal(square: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    n = len(square)
    if n < 2:
        raise SetupError("An unbiased discrepancy needs at least two cells on each side.")
    value = f(square)
    return (value.sum() - value.diagonal().sum()) / (n * (n - 1))


def group_discrepancy(
    x: Tensor,
    group: Tensor,
    kind: Literal["mmd", "energy"] = "mmd",
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0),
    min_cells: int = 2,
) -> Tensor:
    """How far the distribution of each group is from that of all other cells, averaged over groups.

    Parameters
    ----------
    x
        Cells (n, d).
    group
        Integer code of the group of each cell (n,).
    kind
        ``"mmd"`` (squared maximum mean discrepancy, Gaussian kernels around the median distance) or ``"energy"``.
    scales
        Factors on the bandwidth of ``"mmd"``.
    min_cells
        Groups with fewer cells, or with fewer cells outside, are left out.

    Returns
    -------
    0-d tensor, unbiased (its expectation is 0 if all groups have one distribution, so it can be negative); zero if no
    group is large enough. One matrix of distances serves all groups.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import group_discrepancy
    >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> group = torch.arange(40) // 20
    >>> bool(group_discrepancy(x + 3 * group[:, None], group) > group_discrepancy(x, group))
    True
    """
    if kind not in ("mmd", "energy"):
        raise SetupError(f"Unknown discrepancy {kind!r}; use 'mmd' or 'energy'.")
    members = F.one_hot(torch.unique(group, return_inverse=True)[1]).to(x.dtype)
    inside = members.sum(0)
    outside = len(x) - inside
    large = (inside >= min_cells) & (outside >= min_cells)
    if not bool(large.any()):
        return x.new_zeros(())
    square = _squared(x, x)
    if kind == "mmd":
        base = torch.median(square.detach()).clamp_min(1e-12)
        similar = sum((torch.exp(-square / (2 * s * base)) for s in scales), torch.zeros_like(square)) / len(scales)
    else:
        similar = -torch.sqrt(square + 1e-12)
    own = similar.diagonal()
    rows = similar @ members  # (n, groups): similarity of each cell to each group
    within = (rows * members).sum(0) - own @ members
    across = rows.sum(0) - within - own @ members  # cells outside to cells inside
    rest = similar.sum() - own.sum() - within - 2 * across
    value = (
        within / (inside * (inside - 1)).clamp_min(1)
        + rest / (outside * (outside - 1)).clamp_min(1)
        - 2 * across / (inside * outside).clamp_min(1)
    )
    weight = inside * large
    return (value * weight).sum() / weight.sum()


def coupled_discrepancy(x: Tensor, group: Tensor, reference: Tensor) -> Tensor:
    """Mean squared distance of each cell to a reference cell drawn at random, halved.

    Parameters
    ----------
    x
        Cells (n, d).
    group
        Unused code of the group of each cell (n,), so that it can stand in for :func:`group_discrepancy`.
    reference
        Marks the reference cells (n,).

    Returns
    -------
    0-d tensor; zero without reference cells or without others. Its minimum over maps x is a constant: cells of one
    distribution stay apart by twice their variance, which is why collapse must be watched.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import coupled_discrepancy
    >>> x, reference = torch.zeros(4, 2), torch.tensor([True, True, False, False])
    >>> coupled_discrepancy(x, torch.zeros(4), reference).item()
    0.0
    """
    pool, others = x[reference], x[~reference]
    if not len(pool) or not len(others):
        return x.new_zeros(())
    partner = torch.randint(len(pool), (len(others),), device=x.device)
    return 0.5 * (others - pool[partner]).square().sum(1).mean()
