"""What identifies the latents of the gCRL models on the data at hand: one check per assumption."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sccausal.models._identifiability import Check, Verdict
from sccausal.models.gcrl._statistics import Conditions

_MAX_CELLS = 5000


def assumptions(model: Any) -> list[Check]:
    """Checks of a :class:`~sccausal.models.GCRLVAE` or :class:`~sccausal.models.DiscrepancyVAE` on its own cells."""
    conditions = model._conditions()
    checks = [_controls(conditions), _moved(model), _additive(conditions)]
    if model.is_trained_:
        latent = _latent_cells(model)
        change = _covariance_change(model, *latent)
        checks[2:2] = [_through_latents(model, conditions), _kind(model, change), _graph(model, change)]
    if model.module.n_activities > 1:
        checks.append(_told_apart(model))
    checks.append(
        Check(
            "no hidden common cause",
            "Latents share no cause beside the graph, and the decoder can be inverted.",
            checkable=False,
            verdict="unknown",
            explanation="A hidden cause looks like an edge or like one more latent; the cells cannot tell.",
        )
    )
    return checks


def alignment_assumptions(model: Any) -> list[Check]:
    """Checks of a :class:`~sccausal.models.GCRLAE` on its own cells."""
    checks = [_told_apart(model)] if model.module.n_activities > 1 else []
    if model.is_trained_ and model._prior().loadings is None and len(model._prior().sets) > 1:
        test = model.permutation_test(199, seed=0)
        own, simple = test["autoencoder"], test["PCA"]
        checks.append(
            Check(
                "the sets are more than random sets",
                "Latents measure these activities better than those of random sets.",
                True, "holds" if own.pvalue < 0.05 else "violated", own.pvalue,
                f"Permutation test: {own.observed:.3f} against {own.null.mean():.3f} on average over 199 random "
                f"partitions. Principal components reach {simple.observed:.3f} (p = {simple.pvalue:.3g}): where they "
                "do as well, the data hold the sets and the autoencoder adds nothing.",
            )
        )  # fmt: skip
    checks.append(
        Check(
            "activities are the causal variables",
            "The activities are proxies of the variables that cause expression.",
            checkable=False,
            verdict="unknown",
            explanation="Alignment shows that latents agree with the activities, not that either is causal.",
        )
    )
    return checks


def _controls(conditions: Conditions | None) -> Check:
    n = 0 if conditions is None else conditions.n_control
    fewest = 0 if conditions is None else int(conditions.n_cells.min())
    return Check(
        "enough cells", "There are enough control cells and enough cells of each intervention to compare.",
        True, "holds" if n >= 50 and fewest >= 20 else "violated", float(min(n, fewest)),
        f"{n} control cells (50 wanted), {fewest} cells of the rarest intervention (20 wanted).",
    )  # fmt: skip


def _moved(model: Any) -> Check:
    module = model.module
    p, size = module.interventions.assignment().detach(), module.interventions.magnitude.detach().abs()
    reached = (p * (size > 0.25).unsqueeze(1)).amax(0) > 0.5
    free = module.interventions.allowed.bool()
    share = float((reached & free).sum() / free.sum())
    return Check(
        "every latent is moved", "At least one intervention acts on each latent.",
        True, "holds" if share == 1 else "violated", share,
        "Share of the latents (but the global one) on which an intervention acts by more than a quarter of a standard "
        "deviation. Latents that none moves are identified up to a mixing among themselves.",
    )  # fmt: skip


def _through_latents(model: Any, conditions: Conditions | None) -> Check:
    name, text = "effects go through few latents", "An intervention acts on one latent and on genes through it alone."
    table = model.explained_
    if conditions is None or table is None:
        return Check(name, text, True, "unknown", None, "No mean change was seen in training.")
    single = (conditions.dose != 0).sum(1) == 1
    size = table["change"].to_numpy()[single] ** 2
    rest = (1 - table["explained"].to_numpy()[single]) * size
    noise = table["noise"].to_numpy()[single] ** 2
    signal = np.maximum(size - noise, 0.0).sum()
    if signal <= 0.1 * noise.sum():
        return Check(name, text, True, "unknown", None, "The mean changes are not larger than their sampling error.")
    share = float(np.maximum(rest.sum() - noise.sum(), 0.0) / signal)
    return Check(
        name, text, True, "violated" if share > 0.15 else "holds", share,
        "Share of the squared mean changes of single interventions, sampling noise taken out, that the latents leave. "
        "Predictions hold it in the residual of the genes; it has no causal reading.",
    )  # fmt: skip


def _additive(conditions: Conditions | None) -> Check:
    name, text = "combinations are additive", "Shifts of several interventions add up where nothing else was seen."
    several = np.zeros(0, dtype=bool) if conditions is None else (conditions.dose != 0).sum(1) > 1
    if conditions is None or not several.any():
        return Check(name, text, False, "unknown", None, "No combination was seen in training.")
    rows = {tuple(r): i for i, r in enumerate(conditions.dose)}
    excess = size = noise = 0.0
    variance = conditions.spread**2
    for c in np.flatnonzero(several):
        parts: list[int] = []
        for t in np.flatnonzero(conditions.dose[c]):
            single = np.zeros(conditions.dose.shape[1])
            single[t] = conditions.dose[c, t]
            parts.append(rows.get(tuple(single), -1))
        if min(parts) < 0:
            continue
        rest = conditions.change[c] - conditions.change[parts].sum(0)
        inverse = 1 / conditions.n_cells[c] + (1 / conditions.n_cells[parts]).sum()
        inverse += (len(parts) - 1) ** 2 / conditions.n_control
        excess += float((rest**2).sum() - variance.sum() * inverse)
        size += float((conditions.change[c] ** 2).sum())
        noise += float(variance.sum() * (1 / conditions.n_cells[c] + 1 / conditions.n_control))
    if size - noise <= 0.1 * noise:
        return Check(name, text, size > 0, "unknown", None, "No combination was seen together with its parts.")
    share = max(excess, 0.0) / (size - noise)
    return Check(
        name, text, True, "violated" if share > 0.15 else "holds", share,
        "Share of the squared mean change of combinations, sampling noise taken out, that the sum of the parts misses.",
    )  # fmt: skip


@torch.inference_mode()
def _latent_cells(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Y of training cells as the encoder alone sees them, its shift taken out, and their cuts (n, d)."""
    module, rows = model.module, model._training_rows()
    if len(rows) > _MAX_CELLS:
        rows = np.sort(np.random.default_rng(0).choice(rows, _MAX_CELLS, replace=False))
    ys, cuts = [], []
    for tensors in model._training_tensors(rows):
        cells = module._get_inference_input(tensors)
        features, _ = module.features(cells["x"].to(module.scale.device), cells["batch"].to(module.scale.device))
        mean, _ = module.encoder(features[:, module.encoder_genes])
        ys.append(mean.cpu().numpy())
        cuts.append(module.interventions.cut(cells["dose"].to(module.scale.device)).cpu().numpy())
    return np.concatenate(ys), np.concatenate(cuts)


def _covariance_change(model: Any, y: np.ndarray, cut: np.ndarray) -> tuple[int, int, float]:
    """Latents whose correlations with the others change when they are intervened on, tested latents, largest z."""
    from scipy.stats import norm

    control = cut.max(1) < 1e-3
    changed = tested = 0
    largest = 0.0
    d = y.shape[1]
    if control.sum() < 30 or d < 2:
        return 0, 0, 0.0
    limit = float(norm.isf(0.005 / (d * (d - 1))))
    base = np.corrcoef(y[control].T)
    for j in range(d):
        own = cut[:, j] > 0.5
        if own.sum() < 30:
            continue
        tested += 1
        here = np.corrcoef(y[own].T)
        se = np.sqrt(1 / (own.sum() - 3) + 1 / (control.sum() - 3))
        z = np.delete(
            np.abs(np.arctanh(np.clip(here[j], -0.999, 0.999)) - np.arctanh(np.clip(base[j], -0.999, 0.999))), j
        )
        largest = max(largest, float(z.max() / se))
        changed += int(z.max() / se > limit)
    return changed, tested, largest


def _kind(model: Any, change: tuple[int, int, float]) -> Check:
    changed, tested, largest = change
    kind = model.module.intervention_kind
    text = {
        "shift": "Interventions shift their latent and leave its dependence on the others as it is.",
        "do": "Interventions cut their latent off from those that act on it.",
    }[kind]
    verdict: Verdict = "unknown"
    if tested:
        verdict = "holds" if (changed > 0) == (kind == "do") else "violated"
    return Check(
        f"interventions are {kind}", text, True, verdict, largest,
        f"Correlations of {changed} of {tested} latents with the others differ between control cells and cells under "
        "an intervention on the latent (largest z-score shown). Where none differs, no edge is cut or there is none.",
    )  # fmt: skip


def _graph(model: Any, change: tuple[int, int, float]) -> Check:
    changed, tested, largest = change
    found = model.module.intervention_kind == "do" and changed > 0
    if model.module.intervention_kind == "shift":
        why = (
            "Shift interventions do not identify the graph: a decoder f with graph G gives the same cells as "
            "the decoder f((I - G)^-1 .) with the empty graph. Exogenous parts and targets are identified, "
            "edges are not"
        )
        why += "; those shown hold only as far as the activities are the latents." if model.module.n_activities else "."
    else:
        why = f"Interventions cut edges of {changed} of {tested} latents, which shows what acts on them."
    return Check(
        "the latent graph is identified", "Interventions show which latent acts on which.",
        True, "holds" if found else "violated", largest, why,
    )  # fmt: skip


def _told_apart(model: Any) -> Check:
    rows = model._training_rows()
    if len(rows) > _MAX_CELLS:
        rows = np.sort(np.random.default_rng(0).choice(rows, _MAX_CELLS, replace=False))
    values = []
    with torch.inference_mode():
        for tensors in model._training_tensors(rows):
            out = model.module.inference(**model.module._get_inference_input(tensors))
            values.append(model.module.activities(out["features"]).cpu().numpy())
    t = np.concatenate(values)
    names = model.prior_["names"]
    skip = int(names[0] == "global")
    own: np.ndarray = np.atleast_2d(np.corrcoef(t[:, skip:].T.astype(np.float64)))
    inflation = np.linalg.inv(own + 1e-9 * np.eye(len(own))).diagonal()
    worst = int(np.argmax(inflation))
    return Check(
        "activities can be told apart", "No activity is nearly a combination of the others.",
        True, "violated" if inflation[worst] > 10 else "holds", float(inflation[worst]),
        f"Largest variance inflation of an activity given the others ({names[skip + worst]}); beyond 10 little of it "
        "is its own, and the latent that measures it rests on noise. Merge such sets.",
    )  # fmt: skip


__all__ = ["alignment_assumptions", "assumptions"]
