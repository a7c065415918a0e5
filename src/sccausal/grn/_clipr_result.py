"""What CLIPR found, and how far the data determine it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from sccausal._errors import SetupError
from sccausal.grn._network import Network

Estimator = Literal["response", "drift", "drift+targets"]
ESTIMATORS: tuple[Estimator, ...] = ("response", "drift", "drift+targets")


@dataclass(frozen=True, eq=False)
class CliprResult:
    """Direct effects between genes, and how far the data determine them.

    Attributes
    ----------
    direct_effects
        Sources x targets. For ``"response"`` the effect of a unit of the source on the target in rest, all other
        sources held; for the two drift forms the entries of the drift matrix, in units of their time.
    total_effects
        Sources x targets: change of the target per unit change of the perturbed source, everything else free to
        follow, as the direct effects imply it.
    responses
        Changes the result rests on, perturbations x genes.
    estimator, reference
        How it was made: ``"response"``, ``"drift"`` or ``"drift+targets"``, and the point at which drifts were read.
    tikhonov
        Penalty relative to the mean eigenvalue.
    rank, singular_values, condition_number
        Of the responses (states for ``"drift"``) of the sources.
    symmetry_ratio
        ``|A - A^T| / |A + A^T|`` over pairs of sources: near 0 there is no direction in the result.
    n_perturbed
        Genes with a perturbation.
    identified
        Whether the responses determine every effect that is listed, if the assumptions hold.
    intercept, shifts
        For the drift forms, b (genes,) and what each perturbation adds to the drift (perturbations x genes).
    standard_errors, p_values, q_values
        Sources x targets, from a parametric bootstrap with three tenths of the penalty (less bias than in
        ``direct_effects``); q-values after Benjamini and Hochberg. ``None`` without one.
    left_out
        Perturbations that could not be used, with the reason.
    metadata
        Further facts.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_stationary(8, n_cells=100, seed=0)
    >>> result = scc.tl.clipr(adata, intervention_key="intervention", control="control", n_bootstrap=20)
    >>> result.identified, result.to_frame().shape  # one row per pair of different genes
    (True, (56, 7))
    >>> network = result.to_network(fdr=0.05)
    """

    direct_effects: pd.DataFrame
    total_effects: pd.DataFrame
    responses: pd.DataFrame
    estimator: Estimator
    reference: str
    tikhonov: float
    rank: int
    singular_values: np.ndarray
    condition_number: float
    symmetry_ratio: float
    n_perturbed: int
    identified: bool
    intercept: pd.Series | None = None
    shifts: pd.DataFrame | None = None
    standard_errors: pd.DataFrame | None = None
    p_values: pd.DataFrame | None = None
    q_values: pd.DataFrame | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        """Genes that may act on others."""
        return list(map(str, self.direct_effects.index))

    def to_frame(self) -> pd.DataFrame:
        """One row per pair of different genes: source, target, weight, total, and where present the errors."""
        genes = list(map(str, self.direct_effects.columns))
        source = np.repeat(self.sources, len(genes))
        target = np.tile(genes, len(self.sources))
        table = {"source": source, "target": target, "weight": self.direct_effects.to_numpy().ravel()}
        table["total"] = self.total_effects.to_numpy().ravel()
        for name in ("standard_errors", "p_values", "q_values"):
            values = getattr(self, name)
            if values is not None:
                table[name.rstrip("s")] = values.to_numpy().ravel()
        frame = pd.DataFrame(table)
        return frame[frame["source"] != frame["target"]].reset_index(drop=True)

    def to_network(self, *, fdr: float | None = None, top: int | None = None, total: bool = False) -> Network:
        """The effects as a :class:`~sccausal.grn.Network`.

        Parameters
        ----------
        fdr
            Only edges with a q-value of at most this; needs a bootstrap.
        top
            Only so many edges with the largest ``|weight|``.
        total
            The total effects in place of the direct ones.

        Raises
        ------
        sccausal._errors.SetupError
            ``fdr`` is given, but there are no q-values.
        """
        frame = self.to_frame()
        if total:
            frame["weight"] = frame["total"]
        if fdr is not None:
            if self.q_values is None:
                raise SetupError("There are no q-values; run clipr with n_bootstrap > 0.")
            frame = frame[frame["q_value"] <= fdr]
        frame = frame[frame["weight"] != 0]
        facts = {
            "method": f"CLIPR ({self.estimator})", "estimator": self.estimator, "reference": self.reference,
            "identified": self.identified, "rank": self.rank, "symmetry_ratio": self.symmetry_ratio,
            "units": "effect in rest per unit of the source" if self.estimator == "response" else "drift",
        }  # fmt: skip
        network = Network(frame.drop(columns="total"), list(map(str, self.direct_effects.columns)), facts, self.sources)
        return network if top is None else network.top(top)

    def __repr__(self) -> str:
        shape = self.direct_effects.shape
        lines = [
            f"CLIPR ({self.estimator}): {shape[0]} sources x {shape[1]} genes, reference {self.reference}",
            f"rank {self.rank}, condition number {self.condition_number:.3g}, symmetry {self.symmetry_ratio:.3g} "
            "(near 0: no direction), "
            + ("identified if the assumptions hold" if self.identified else "not identified"),
        ]
        if self.q_values is not None:
            off = ~np.equal.outer(self.direct_effects.index.to_numpy(), self.direct_effects.columns.to_numpy())
            lines.append(f"{int((self.q_values.to_numpy()[off] <= 0.05).sum())} edges at a false discovery rate of 5 %")
        if self.left_out:
            lines.append(
                f"left out: {', '.join(list(self.left_out)[:8])}" + (", ..." if len(self.left_out) > 8 else "")
            )
        return "\n".join(lines)
