"""What of the theory of CITE-VAE can be checked on the data at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sccausal.data import KEYS
from sccausal.models._identifiability import Check

_MOST_CELLS = 3000


def assumptions(model: Any) -> list[Check]:
    """Checks of a trained model."""
    rows = model._training_rows()
    dose = model._doses()[rows]
    time = np.ravel(model.adata_manager.get_from_registry(KEYS.TIME)).astype(float)[rows]
    checks = [_snapshots(dose, time), _followed(dose, time)]
    if dose.shape[1]:
        checks += [_environments(model, dose), _aligned(model, rows, dose)]
    checks += [_informative(model), _pairs(model)]
    checks.append(
        Check(
            "parents removed",
            "For each responsive latent some intervention takes the influence of its parents away (Assumption 4.3).",
            False,
            "unknown",
            None,
            "Which parents a latent has without observation of single cells over time cannot be tested; "
            "get_responsive_effects() shows what the model learned (parents_kept).",
        )  # fmt: skip
    )
    return checks


def _snapshots(dose: np.ndarray, time: np.ndarray) -> Check:
    control = ~(dose != 0).any(1)
    per_time = [int((control & (time == t)).sum()) for t in np.unique(time)]
    fewest = min(per_time)
    return Check(
        "control at every time", "Control cells were measured at every time, 20 at least.",
        True, "holds" if fewest >= 20 else "violated", float(fewest),
        "Fewest control cells of a time. Effects are read against control cells of the same time; where there are "
        "none, differentiation and intervention cannot be told apart.",
    )  # fmt: skip


def _followed(dose: np.ndarray, time: np.ndarray) -> Check:
    _, code = np.unique(dose, axis=0, return_inverse=True)
    n_times = [len(np.unique(time[code.ravel() == k])) for k in np.unique(code)]
    share = float(np.mean(np.asarray(n_times) > 1))
    return Check(
        "interventions are followed", "Every intervention was measured at two times at least.",
        True, "holds" if share == 1 else "violated", share,
        "Share of the interventions (and control) with two times or more; the dynamics under the others is borrowed.",
    )  # fmt: skip


def natural_differences(model: Any, dose: np.ndarray) -> np.ndarray:
    """Natural parameters of the innovations of s under each intervention minus those under control (E - 1, 2 d_s)."""
    block, module = model.module.responsive, model.module
    rows = np.unique(dose, axis=0)
    rows = rows[(rows != 0).any(1)]
    e = torch.as_tensor(rows, dtype=torch.float32, device=module.scale.device) @ module.embedding
    with torch.inference_mode():
        both = torch.cat([torch.zeros_like(e[:1]), e])
        mean, log_var = block.natural(both, len(both))
        # in units of the innovations under control, so that the rank does not depend on scales
        unit = (-0.5 * log_var[:1]).exp()
        precision = torch.exp(-log_var) / unit.square()
        natural = torch.cat([mean * unit * precision, -0.5 * precision], 1).cpu().numpy().astype(float)
    return natural[1:] - natural[0]


def _environments(model: Any, dose: np.ndarray) -> Check:
    d = model.module.n_responsive
    differences = natural_differences(model, dose)
    size = np.linalg.svd(differences, compute_uv=False)
    rank = int((size > 2e-3 * max(size[0], 1e-12)).sum()) if len(size) else 0
    needed, found = 2 * d + 1, len(differences) + 1
    shown = ", ".join(f"{v:.2g}" for v in size[: 2 * d])
    return Check(
        "environment sufficiency", f"{needed} environments move the {d} responsive latents in independent ways "
        "(Assumption 4.1).", True, "holds" if rank >= 2 * d else "violated", float(rank),
        f"Rank of the learned natural parameters' differences, {2 * d} wanted; {found} environments are there, "
        f"{needed} needed. Singular values: {shown}. Short of it the responsive block is found as a whole at best.",
    )  # fmt: skip


def _aligned(model: Any, rows: np.ndarray, dose: np.ndarray) -> Check:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    name, text = "alignment", "The invariant block does not tell the intervention (Assumption 4.2)."
    picked = np.sort(np.random.default_rng(0).permutation(len(rows))[:_MOST_CELLS])
    _, code = np.unique(dose[picked], axis=0, return_inverse=True)
    code = code.ravel()
    count = np.bincount(code)
    keep = (count >= 10)[code]
    if len(np.unique(code[keep])) < 2:
        return Check(name, text, True, "unknown", None, "Too few cells per intervention.")
    c = model.get_latent_representation(indices=rows[picked][keep], representation="invariant")
    # squares show changes of variance to a linear rule
    features = np.column_stack([c, (c - c.mean(0)) ** 2])
    rule = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, class_weight="balanced"))
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    accuracy = float(cross_val_score(rule, features, code[keep], cv=folds, scoring="balanced_accuracy").mean())
    chance = 1 / len(np.unique(code[keep]))
    return Check(
        name, text, True, "holds" if accuracy <= chance + 0.05 else "violated", accuracy,
        f"Balanced accuracy of the intervention from c, on cells left out; chance is {chance:.3f}.",
    )  # fmt: skip


def _informative(model: Any) -> Check:
    share = model.invariant_collapse()
    return Check(
        "invariant block is used", "The invariant latents vary between cells.",
        True, "holds" if share <= 0.5 else "violated", share,
        "Share of the invariant latents that are nearly constant. A constant block is aligned and says nothing.",
    )  # fmt: skip


def _pairs(model: Any) -> Check:
    tracked = model.module.pairing == "tracked"
    return Check(
        "transitions", "Pairs of cells of adjacent times are one cell and its future.",
        False, "unknown", None,
        "Pairs are tracked cells." if tracked else
        "Cells are destroyed when they are measured: pairs come from "
        f"{model.module.pairing} coupling of snapshots, so that the learned transition of single cells regresses to "
        "the mean, and edges of the lagged graph towards zero; means over cells do not.",
    )  # fmt: skip
