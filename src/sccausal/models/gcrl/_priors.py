"""Activities as priors: sets of genes, a gene set file or a matrix of loadings as linear functions of expression."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from natsort import natsorted

from sccausal._errors import InputDataError, SetupError, close_names

GLOBAL = "global"

Activities: TypeAlias = Mapping[str, Sequence[str]] | pd.DataFrame | pd.Series | str | Path


@dataclass(frozen=True)
class Prior:
    """Activities by name, as the sets or the loadings they come from.

    Attributes
    ----------
    names
        Names of the activities, the global one (if there is one) first.
    sets
        Genes of each activity but the global one, measured or not; targets among them act on its latent.
    loadings
        Loadings (genes x activities) given by the user, or ``None`` for eigengenes of the sets.
    """

    names: list[str]
    sets: dict[str, list[str]]
    loadings: pd.DataFrame | None = None

    @property
    def has_global(self) -> bool:
        """Whether the first activity is the global one."""
        return bool(self.names) and self.names[0] == GLOBAL


def read_prior(
    activities: Activities | None,
    genes: Sequence[str],
    *,
    with_global: bool = True,
    min_genes: int = 2,
    max_activities: int | None = None,
) -> Prior | None:
    """Read activities from any of the forms a user may have.

    Parameters
    ----------
    activities
        Sets of genes by name (communities, pathways), a Series gene -> set, a GMT file, or a frame genes x activities
        of loadings. ``None`` gives ``None``.
    genes
        Genes of the data.
    with_global
        Put a global activity over all genes of the sets before the others (not for loadings).
    min_genes
        Sets with fewer measured genes are left out.
    max_activities
        Keep the sets with the most measured genes.

    Raises
    ------
    sccausal._errors.SetupError
        The form is not known, or no set has enough measured genes.
    sccausal._errors.InputDataError
        Loadings are not finite.
    """
    if activities is None:
        return None
    if isinstance(activities, pd.DataFrame):
        return _from_loadings(activities, genes)
    sets = _sets(activities)
    known = set(genes)
    measured = {name: sum(g in known for g in members) for name, members in sets.items()}
    kept = [name for name in sets if measured[name] >= min_genes]
    if max_activities is not None and len(kept) > max_activities:
        largest = set(sorted(kept, key=lambda n: -measured[n])[:max_activities])
        kept = [name for name in kept if name in largest]
    if not kept:
        shown = next(iter(next(iter(sets.values()), [])), None)
        near = close_names(str(shown), genes)[:1]
        hint = f" Is {shown!r} called {near[0]!r} in adata.var_names?" if near else ""
        raise SetupError(
            f"None of the {len(sets)} sets has {min_genes} genes among the {len(known)} of the data.{hint} "
            "Check the kind of gene names, or lower min_genes."
        )
    if GLOBAL in kept:
        raise SetupError(f"A set is called {GLOBAL!r}, the name of the activity over all sets; rename it.")
    names = [GLOBAL, *kept] if with_global and len(kept) > 1 else kept
    return Prior(names, {name: [str(g) for g in sets[name]] for name in kept})


def _sets(activities: Any) -> dict[str, list[str]]:
    if isinstance(activities, str | Path):
        return read_gmt(activities)
    if isinstance(activities, pd.Series):
        series = activities.dropna()
        label = series.astype(str)
        names = [str(name) for name in natsorted(label.unique())]
        return {name: [str(g) for g in label.index[(label == name).to_numpy()]] for name in names}
    if isinstance(activities, Mapping):
        return {str(name): [str(g) for g in dict.fromkeys(members)] for name, members in activities.items()}
    raise SetupError(
        f"`activities` is a {type(activities).__name__}; give sets of genes by name, a Series gene -> set, the path of "
        "a GMT file, or a frame genes x activities of loadings."
    )


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Gene sets of a GMT file (``.gmt`` or ``.gmt.gz``): name, description, genes, separated by tabs."""
    path = Path(path)
    if not path.is_file():
        raise SetupError(f"There is no gene set file {str(path)!r}.")
    opener = gzip.open if path.suffix == ".gz" else open
    sets: dict[str, list[str]] = {}
    with opener(path, "rt", encoding="utf-8") as handle:
        for line in handle:
            parts = line.rstrip("\n").split("\t")
            if len(parts) > 2:
                sets[parts[0]] = [g.split(",")[0] for g in parts[2:] if g]
    if not sets:
        raise SetupError(f"{str(path)!r} holds no gene set: lines of a GMT file are name, description, genes.")
    return sets


def _from_loadings(frame: pd.DataFrame, genes: Sequence[str]) -> Prior:
    values = frame.to_numpy(dtype=float)
    if not np.isfinite(values).all():
        raise InputDataError("The loadings hold values that are not finite.")
    found = [g for g in frame.index.astype(str) if g in set(genes)]
    if not found:
        near = close_names(str(frame.index[0]), genes)[:1]
        hint = f" Is {str(frame.index[0])!r} called {near[0]!r} there?" if near else ""
        raise SetupError(f"No row of the loadings is a gene of the data; rows are genes, columns activities.{hint}")
    names = [str(c) for c in frame.columns]
    sets = {
        n: [str(g) for g in frame.index[frame[c].to_numpy() != 0]] for n, c in zip(names, frame.columns, strict=True)
    }
    sets.pop(GLOBAL, None)
    if GLOBAL in names:
        names = [GLOBAL, *[n for n in names if n != GLOBAL]]
    return Prior(names, sets, frame.set_axis([str(c) for c in frame.columns], axis=1))


def prior_loadings(prior: Prior, genes: Sequence[str], features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loadings of the activities on standardised features, and the means of the activities.

    Parameters
    ----------
    prior
        The activities.
    genes
        Genes of the data (m,).
    features
        Standardised features of the training cells (n, m).

    Returns
    -------
    loadings
        (m, k): eigengenes (first principal component of the genes of a set, mean loading positive), of unit variance.
    mean
        Mean activity (k,), to be subtracted.
    """
    import torch

    from sccausal.nn.permutation import eigengene_weights

    position = {g: i for i, g in enumerate(genes)}
    sd = features.std(0, dtype=np.float64)
    loadings = np.zeros((len(genes), len(prior.names)))
    for j, name in enumerate(prior.names):
        if prior.loadings is not None:
            column = prior.loadings[name]
            rows = [(position[str(g)], float(v)) for g, v in column.items() if str(g) in position]
            loadings[[r for r, _ in rows], j] = [v for _, v in rows]
            continue
        members = sorted({g for s in prior.sets.values() for g in s}) if name == GLOBAL else prior.sets[name]
        at = np.array([position[g] for g in members if g in position and sd[position[g]] > 1e-6], dtype=int)
        if not at.size:
            raise InputDataError(f"No gene of the activity {name!r} varies among the training cells.")
        correlation = torch.as_tensor(np.corrcoef(features[:, at].astype(np.float64).T).reshape(at.size, at.size))
        weight = eigengene_weights(correlation, torch.arange(at.size)[None])[0].numpy()
        loadings[at, j] = weight / sd[at]
    activity = features.astype(np.float64) @ loadings
    spread = activity.std(0)
    if (spread < 1e-9).any():
        flat = [n for n, s in zip(prior.names, spread, strict=True) if s < 1e-9]
        raise InputDataError(f"Activities that are the same in every cell: {', '.join(flat[:5])}.")
    return loadings / spread, activity.mean(0) / spread


def routes(prior: Prior | None, targets: Sequence[str]) -> np.ndarray:
    """Activity each target belongs to, one-hot (T, k); zero for targets in no set or in several."""
    if prior is None:
        return np.zeros((len(targets), 0))
    out = np.zeros((len(targets), len(prior.names)))
    for j, name in enumerate(prior.names):
        members = set(prior.sets.get(name, ()))
        for t, target in enumerate(targets):
            out[t, j] = float(target in members)
    out[out.sum(1) != 1] = 0.0
    return out
