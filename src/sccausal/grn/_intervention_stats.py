"""Sufficient statistics under interventions: for each gene, the cells in which its own mechanism was at work."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse
from scipy.stats import chi2

from sccausal._errors import SetupError

InterventionKind = Literal["hard", "soft"]


class InterventionStatistics:
    r"""Gram matrices per target gene, without a copy for every gene.

    The likelihood of gene ``j`` given its regulators holds only for cells in which the mechanism of ``j`` is intact.
    With ``U_j`` the cells intervened on ``j``, and all sums centred within their cells:

    ``"hard"``
        (knock-out, do) :math:`G_j = G - G_{U_j}`: the cells of ``U_j`` say nothing about what regulates ``j``.
    ``"soft"``
        (shift of the level, regulation kept) ``j`` has a mean of its own in ``U_j``:
        :math:`G_j = G - \bar x_{U_j} \bar x_{U_j}^T |U_j| - \ldots`, i.e. the indicator of ``U_j`` is regressed out.

    In both cases the cells of ``U_j`` count in full for all other genes, and this is what orients edges.

    Parameters
    ----------
    values
        Expression, shape (n_cells, n_genes).
    intervened
        Which gene is intervened on in which cell, boolean (n_cells, n_genes), dense or sparse; ``None`` for none.
    kind
        Kind of intervention.
    """

    def __init__(
        self,
        values: np.ndarray,
        intervened: np.ndarray | sparse.spmatrix | None = None,
        kind: InterventionKind = "hard",
    ) -> None:
        if kind not in ("hard", "soft"):
            raise SetupError(f"`kind` is {kind!r}; choose 'hard' or 'soft'.")
        x = np.asarray(values, dtype=np.float64)
        x = x - x.mean(0)
        self.kind = kind
        self.n_cells, self.n_genes = x.shape
        self.gram = x.T @ x
        self.targets: dict[int, np.ndarray] = {}
        self._cells: dict[int, np.ndarray] = {}
        self._grams: dict[int, np.ndarray] = {}
        self._sums: dict[int, np.ndarray] = {}
        if intervened is not None:
            mask = sparse.csc_matrix(intervened, dtype=bool)
            for j in np.flatnonzero(np.diff(mask.indptr)):
                self._add_target(int(j), mask.indices[mask.indptr[j] : mask.indptr[j + 1]], x)

    def _add_target(self, j: int, cells: np.ndarray, x: np.ndarray) -> None:
        if len(cells) > self.n_cells - 3:
            raise SetupError(f"Gene {j} is intervened on in all cells but {self.n_cells - len(cells)}.")
        chosen = x[np.sort(cells)]
        self.targets[j] = np.sort(cells)
        self._sums[j] = chosen.sum(0)
        if self.kind == "hard":
            if len(cells) > self.n_genes:  # then the Gram matrix of these cells is smaller than the cells
                self._grams[j] = chosen.T @ chosen
            else:
                self._cells[j] = chosen

    def effective_cells(self, j: int) -> int:
        """Number of cells that inform on the regulation of gene ``j``."""
        lost = len(self.targets[j]) if self.kind == "hard" and j in self.targets else 0
        return self.n_cells - lost

    def columns(self, j: int, genes: np.ndarray | list[int]) -> np.ndarray:
        """Columns ``genes`` of the Gram matrix of gene ``j``, shape (n_genes, len(genes))."""
        out = self.gram[:, genes]
        if j not in self.targets:
            return out
        total = self._sums[j]
        n_in = len(self.targets[j])
        out = out - np.outer(total, total[genes] / (self.n_cells - n_in))
        if self.kind == "soft":
            return out - np.outer(total, total[genes] / n_in)
        if j in self._grams:
            return out - self._grams[j][:, genes]
        cells = self._cells[j]
        return out - cells.T @ cells[:, genes]

    def diagonal(self, j: int) -> np.ndarray:
        """Diagonal of the Gram matrix of gene ``j``, shape (n_genes,)."""
        out = self.gram.diagonal().copy()
        if j not in self.targets:
            return out
        n_in = len(self.targets[j])
        square = self._sums[j] ** 2
        out -= square / (self.n_cells - n_in)
        if self.kind == "soft":
            return out - square / n_in
        return out - (self._grams[j].diagonal() if j in self._grams else (self._cells[j] ** 2).sum(0))


def response_evidence(values: np.ndarray, stats: InterventionStatistics, *, min_cells: int = 4) -> np.ndarray:
    """Evidence that a gene responds to the intervention on another one, ``-log p``.

    Hard interventions: likelihood ratio of a Gaussian with own mean, variance and slope on the intervened gene within
    the intervened cells, against the distribution in the other cells (3 degrees of freedom). Soft: of the mean only.

    Parameters
    ----------
    values
        Expression, shape (n_cells, n_genes).
    stats
        Statistics of the same cells.
    min_cells
        Targets with fewer cells give no evidence.

    Returns
    -------
    Array (n_genes, n_genes); rows are intervened genes, rows of other genes are zero.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x - x.mean(0)
    total, square = x.sum(0), (x**2).sum(0)
    evidence = np.zeros((stats.n_genes, stats.n_genes))
    for i, cells in stats.targets.items():
        n_in, n_out = len(cells), stats.n_cells - len(cells)
        if n_in < min_cells:
            continue
        inside = x[cells]
        mean = (total - inside.sum(0)) / n_out
        variance = np.maximum((square - (inside**2).sum(0)) / n_out - mean**2, 1e-9)
        if stats.kind == "soft":
            ratio, df = n_in * (inside.mean(0) - mean) ** 2 / variance, 1
        else:
            centred = inside - inside.mean(0)
            own = centred[:, i]
            slope = own @ centred / max(float(own @ own), 1e-12)
            rest = np.maximum((centred**2).mean(0) - slope**2 * (own**2).mean(), 1e-9)
            fit = ((inside - mean) ** 2).sum(0) / variance - n_in
            ratio, df = np.maximum(fit + n_in * np.log(variance / rest), 0), 3
        evidence[i] = -chi2.logsf(ratio, df)
        evidence[i, i] = 0
    return evidence


def order_by_response(evidence: np.ndarray, alpha: float = 0.01) -> np.ndarray:
    """Causal order by the number of interventions that reach a gene, as it is reached by all that reach its regulators.

    Parameters
    ----------
    evidence
        As :func:`response_evidence` gives it.
    alpha
        Level at which a response counts, divided by the number of genes.

    Returns
    -------
    Genes, sources first.
    """
    n_genes = evidence.shape[0]
    reached = (evidence > np.log(n_genes / alpha)).sum(0)
    strength = np.minimum(evidence, 50).sum(0)
    return np.lexsort((np.arange(n_genes), strength, reached))
