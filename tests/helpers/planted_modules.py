"""Cells with planted modules of transcription factors: who regulates whom is known, and so is the module of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData


@dataclass
class Planted:
    """Cells, the module of each regulator, the true edges, and a base network that holds many false ones."""

    adata: AnnData
    modules: pd.Series
    truth: pd.DataFrame
    base: pd.DataFrame


def planted_modules(
    n_cells: int = 1500,
    n_modules: int = 5,
    module_size: int = 12,
    n_targets: int = 150,
    p_in: float = 0.35,
    p_out: float = 0.02,
    false_per_true: float = 3.0,
    counts: bool = True,
    seed: int = 0,
) -> Planted:
    """Linear regulation among regulators (stable, with cycles) and of targets, read through Poisson counts.

    False edges of the base network are spread evenly over modules, so that the base network alone shows them less.
    """
    rng = np.random.default_rng(seed)
    n_tf = n_modules * module_size
    n_genes = n_tf + n_targets
    # names in random order: neither their order nor the alphabet gives the modules away
    names = np.array([f"G{i:04d}" for i in rng.permutation(n_genes)])
    module = np.repeat(np.arange(n_modules), module_size)
    same = module[:, None] == module[None, :]
    edge = rng.random((n_tf, n_tf)) < np.where(same, p_in, p_out)
    np.fill_diagonal(edge, False)
    acting = edge * rng.choice([-1, 1], (n_tf, n_tf), p=[0.25, 0.75]) * rng.lognormal(0.0, 0.3, (n_tf, n_tf))
    acting *= 0.7 / np.abs(np.linalg.eigvals(acting)).max()  # feedback, but stable
    latent = rng.normal(size=(n_cells, n_tf)) @ np.linalg.inv(np.eye(n_tf) - acting)
    down = np.zeros((n_tf, n_targets))
    for t in range(n_targets):
        own = rng.choice(np.flatnonzero(module == rng.integers(n_modules)), 3, replace=False)
        down[own, t] = rng.choice([-1, 1], 3) * rng.uniform(0.3, 0.6, 3)
    z = np.concatenate([latent, latent @ down + rng.normal(size=(n_cells, n_targets))], axis=1)
    z = 0.5 * (z - z.mean(0)) / z.std(0)
    level = rng.lognormal(1.5, 0.5, n_genes)
    X = rng.poisson(level * np.exp(z - 0.125)) if counts else z
    matrix = np.concatenate([acting, down], axis=1)
    s, t = np.nonzero(matrix)
    truth = pd.DataFrame({"source": names[s], "target": names[t], "weight": matrix[s, t]})
    absent = np.argwhere(matrix == 0)
    absent = absent[absent[:, 0] != absent[:, 1]]
    drawn = absent[rng.choice(len(absent), int(false_per_true * len(truth)), replace=False)]
    false = pd.DataFrame({"source": names[drawn[:, 0]], "target": names[drawn[:, 1]], "weight": 0.0})
    base = pd.concat([truth, false]).drop(columns="weight").sample(frac=1, random_state=seed).reset_index(drop=True)
    adata = AnnData(np.log1p(X).astype(np.float32) if counts else X.astype(np.float32))
    adata.var_names, adata.obs_names = list(names), [f"c{i}" for i in range(n_cells)]
    adata.var["is_tf"] = np.arange(n_genes) < n_tf
    return Planted(adata, pd.Series([f"M{m}" for m in module], index=names[:n_tf]), truth, base)
