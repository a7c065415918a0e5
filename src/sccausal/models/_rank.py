"""Search for the intervention that brings control cells closest to a wanted state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from sccausal._compat import setup_args
from sccausal._errors import SetupError, unknown_name
from sccausal.metrics import energy_distance
from sccausal.models._cells import comparable, gene_order, take_modality

if TYPE_CHECKING:
    from sccausal.models._base import CausalModel

MAX_CANDIDATES = 5000
METRICS = ("energy", "mean")


class Ranking:
    """Distances of predictions to one wanted state.

    Parameters
    ----------
    model
        The model.
    target_state
        Cells, or a mean vector (genes,).
    metric
        ``"energy"`` or ``"mean"``.
    genes
        Genes that count; ``None`` for all.
    max_cells
        Cells drawn from the target, at most.
    seed
        Seed of that draw.
    """

    def __init__(
        self, model: CausalModel, target_state: Any, metric: str, genes: Sequence[str] | None, max_cells: int, seed: int
    ) -> None:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS, "rank")
        self._codec = model.codec
        self._units = model.prediction_units
        self._metric = metric
        names = [str(g) for g in model.get_var_names()]
        self._genes = slice(None) if genes is None else gene_positions(names, genes)
        self._target = self._wanted(model, target_state, names, max_cells, seed)[:, self._genes]

    def _wanted(self, model: CausalModel, target_state: Any, names: list[str], max_cells: int, seed: int) -> np.ndarray:
        if not isinstance(target_state, AnnData | MuData):
            vector = np.asarray(target_state, dtype=np.float64).ravel()
            if self._metric != "mean":
                raise SetupError("A mean vector has no spread; rank it with metric='mean' or pass cells.")
            if vector.shape != (len(names),) or not np.isfinite(vector).all():
                raise SetupError(f"The target vector needs {len(names)} finite values, one per gene of the model.")
            return vector[None]
        cells = take_modality(target_state)
        layer = setup_args(model.registry_).get("layer")
        if layer is not None and layer not in cells.layers:
            raise SetupError(
                f"Layer {layer!r} of the set-up is not in the target's layers; found {list(cells.layers)}."
            )
        order = gene_order(cells, names)
        rows = np.arange(cells.n_obs)
        if self._metric == "energy" and len(rows) > max_cells:
            rows = np.sort(np.random.default_rng(seed).choice(rows, max_cells, replace=False))
        matrix = (cells.X if layer is None else cells.layers[layer])[rows][:, order]
        values = comparable(matrix, self._units).astype(np.float64)
        return values if self._metric == "energy" else values.mean(axis=0, keepdims=True)

    def distance(self, predicted: np.ndarray) -> float:
        """Distance of predicted cells (cells, genes) to the target."""
        values = comparable(predicted, self._units)[:, self._genes].astype(np.float64)
        if self._metric == "mean":
            return float(np.linalg.norm(values.mean(axis=0) - self._target[0]))
        # the V-statistic is never negative, so that shares of it can be given
        return energy_distance(values, self._target, unbiased=False)

    def table(
        self, score: Callable[[np.ndarray], float], rows: np.ndarray | None, max_size: int, beam: int | None
    ) -> pd.DataFrame:
        """Score all candidates and sort them.

        Parameters
        ----------
        score
            Distance of the prediction under one dose row.
        rows
            Candidates as dose rows; ``None`` searches combinations.
        max_size
            Largest combination of that search.
        beam
            See :meth:`sccausal.models.PerturbationAccessor.rank`.
        """
        nothing = np.zeros(len(self._codec), dtype=np.float32)
        untreated = score(nothing)
        if rows is None:
            found = self._search(score, max_size, beam)
        else:
            found = [(row, score(row)) for row in rows if row.any()]
        found.append((nothing, untreated))
        frame = pd.DataFrame(
            {
                "intervention": [self._codec.label(row, with_dose=True) for row, _ in found],
                "size": [int(np.count_nonzero(row)) for row, _ in found],
                "distance": [d for _, d in found],
            }
        ).drop_duplicates("intervention")
        frame["improvement"] = 1 - frame["distance"] / untreated if untreated > 0 else 0.0
        # among equals the smaller intervention comes first
        frame = frame.sort_values(["distance", "size", "intervention"], ignore_index=True)
        frame.insert(0, "rank", np.arange(1, len(frame) + 1))
        return frame

    def _search(
        self, score: Callable[[np.ndarray], float], max_size: int, beam: int | None
    ) -> list[tuple[np.ndarray, float]]:
        n = len(self._codec)
        if max_size < 1 or (beam is not None and beam < 1):
            raise SetupError("max_size and beam must be at least 1.")
        largest = 1 if self._codec.sep is None else min(max_size, n)
        scores: dict[frozenset[int], float] = {}
        kept = [frozenset[int]()]
        for size in range(1, largest + 1):
            candidates = sorted({k | {j} for k in kept for j in range(n) if j not in k}, key=sorted)
            if size > 1 and beam is None:
                candidates = [frozenset(c) for c in combinations(range(n), size)]
            if len(scores) + len(candidates) > MAX_CANDIDATES:
                raise SetupError(
                    f"{len(scores) + len(candidates)} candidates are more than {MAX_CANDIDATES}; "
                    "pass `beam`, a smaller `max_size`, or the `interventions` to try."
                )
            for candidate in candidates:
                scores[candidate] = score(self._row(candidate))
            kept = sorted(candidates, key=lambda c: (scores[c], sorted(c)))[:beam]
        return [(self._row(c), d) for c, d in scores.items()]

    def _row(self, targets: frozenset[int]) -> np.ndarray:
        row = np.zeros(len(self._codec), dtype=np.float32)
        row[list(targets)] = 1
        return row


def gene_positions(names: Sequence[str], genes: Sequence[str]) -> np.ndarray:
    """Positions of ``genes`` in ``names``; an unknown one raises with close names."""
    at = {g: i for i, g in enumerate(names)}
    missing = next((g for g in genes if g not in at), None)
    if missing is not None:
        raise unknown_name("gene", missing, names, "the model")
    return np.asarray([at[g] for g in genes], dtype=int)
