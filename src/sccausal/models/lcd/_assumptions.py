"""What LCD and its direct effects rest on, checked on the training cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from sccausal.models._identifiability import Check
from sccausal.models.lcd._statistics import StateStatistics


def assumptions(model: Any) -> list[Check]:
    """Checks of a :class:`~sccausal.models.LCD` on its own cells."""
    found: StateStatistics = model._statistics()
    genes = model._gene_names()
    return [
        _controls(found),
        _own_targets(found, model.codec.targets, genes),
        _enough_perturbed(found, model.codec.targets, genes),
        _additive(found),
        _covariance(model, found),
        Check(
            "cells are in rest", "Cells were measured when the effects of the intervention had settled.",
            checkable=False, verdict="unknown",
            explanation="One time point cannot tell. Cells on their way look like cells with smaller indirect effects.",
        ),
        Check(
            "the drift is the score", "The diffusion is reversible: no circular flow in rest.",
            checkable=False, verdict="unknown",
            explanation="All drifts (I + Q) score with antisymmetric Q have the same cells in rest. The score gives "
            "a symmetric matrix without directions; 'response' and 'drift+targets' take them from the targets.",
        ),
    ]  # fmt: skip


def _controls(found: StateStatistics) -> Check:
    fewest = int(found.n_cells.min())
    enough = found.n_control >= 50 and fewest >= 20
    return Check(
        "enough cells", "There are enough control cells and enough cells of each intervention to compare.",
        True, "holds" if enough else "violated", float(min(found.n_control, fewest)),
        f"{found.n_control} control cells (50 wanted), {fewest} cells of the rarest intervention (20 wanted). "
        "Effects of rare interventions are pulled towards none.",
    )  # fmt: skip


def _own_targets(found: StateStatistics, targets: tuple[str, ...], genes: list[str]) -> Check:
    place = {g: j for j, g in enumerate(genes)}
    single = np.flatnonzero((found.dose != 0).sum(axis=1) == 1)
    z, names = [], []
    for c in single:
        target = targets[int(np.flatnonzero(found.dose[c])[0])]
        if target in place:
            se = found.scale[place[target]] * np.sqrt(1 / found.n_cells[c] + 1 / max(found.n_control, 1))
            z.append(abs(found.change[c, place[target]]) / max(se, 1e-12))
            names.append(target)
    text = "A perturbation changes the gene it is aimed at."
    if not z:
        return Check("perturbations reach their targets", text, True, "unknown", None,
                     "No target is a measured gene; direct and indirect effects cannot be told apart.")  # fmt: skip
    share = float(np.mean(np.array(z) > 3))
    missed = [n for n, v in zip(names, z, strict=True) if v <= 3]
    return Check(
        "perturbations reach their targets", text, True, "holds" if share >= 0.8 else "violated", share,
        f"Share of the {len(z)} measured targets whose own level changes (|z| > 3)."
        + (f" Not: {', '.join(missed[:6])}." if missed else ""),
    )  # fmt: skip


def _enough_perturbed(found: StateStatistics, targets: tuple[str, ...], genes: list[str]) -> Check:
    known = set(genes)
    measured = {targets[t] for row in found.dose for t in np.flatnonzero(row) if targets[t] in known}
    share = len(measured) / len(genes)
    return Check(
        "every gene is perturbed", "There is a perturbation of each gene, so that no effect hides behind another gene.",
        True, "holds" if share >= 1 - 1 / len(genes) else "violated", share,
        f"{len(measured)} of {len(genes)} genes are perturbed. Effects among perturbed genes then hold what runs "
        "through the others; the full matrix is known only on the span of the responses.",
    )  # fmt: skip


def _additive(found: StateStatistics) -> Check:
    name, text = (
        "effects add up",
        "A combination does the sum of what its parts do (as it must if dynamics are linear).",
    )
    single = {int(np.flatnonzero(r)[0]): c for c, r in enumerate(found.dose) if (r != 0).sum() == 1}
    excess = size = 0.0
    noise_size = 0.0
    for c in np.flatnonzero((found.dose != 0).sum(axis=1) > 1):
        parts = np.flatnonzero(found.dose[c])
        if not all(int(t) in single for t in parts):
            continue
        rows = [single[int(t)] for t in parts]
        factor = [found.dose[c, t] / found.dose[r, t] for t, r in zip(parts, rows, strict=True)]
        expected = sum(f * found.change[r] for f, r in zip(factor, rows, strict=True))
        rest = found.change[c] - expected
        inverse = 1 / found.n_cells[c] + sum(f**2 / found.n_cells[r] for f, r in zip(factor, rows, strict=True))
        inverse += (sum(factor) - 1) ** 2 / found.n_control
        excess += float((rest**2 / found.scale**2).sum()) - len(rest) * inverse
        # a combination that does nothing where its parts do much is the clearest departure of all
        size += max(float((v**2 / found.scale**2).sum()) for v in (found.change[c], expected))
        noise_size += len(rest) * (1 / found.n_cells[c] + 1 / found.n_control)
    if size - noise_size <= 0.1 * noise_size:
        return Check(name, text, size > 0, "unknown", None, "No combination was seen together with its parts.")
    share = max(excess, 0.0) / (size - noise_size)
    return Check(
        name, text, True, "violated" if share > 0.1 else "holds", share,
        "Squared departure of combinations from the sum of their parts, sampling noise taken out, over squared change.",
    )  # fmt: skip


def _covariance(model: Any, found: StateStatistics) -> Check:
    """Whether perturbed cells vary as control cells do; linear dynamics leave the covariance as it is."""
    spread = model._spread_by_condition()
    text = "Interventions move cells and leave their variation as it is."
    if spread is None:
        return Check(
            "dynamics are linear", text, True, "unknown", None, "Too few cells of any intervention (40 wanted)."
        )
    share = float(spread)
    return Check(
        "dynamics are linear", text, True, "violated" if share > 0.1 else "holds", share,
        "Share of the pairs of intervention and gene whose variance differs from that of control cells (log ratio "
        "beyond 4 standard errors and 10 %). Where it does, points of rest describe cells only on average.",
    )  # fmt: skip
