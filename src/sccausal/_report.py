"""Tables and figures of a fitted model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._steps import Steps

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from sccausal._workflow import FitSettings
    from sccausal.data import Split
    from sccausal.grn import Network

SHOWN = ("nmse_top", "pearson_change_top", "r2_top", "energy_distance")
_MAX_KEY_GENES = 50


def history_figure(model: Any, out: Path) -> None:
    """Losses over epochs."""
    from sccausal import pl

    pl.history(model, show=False, save=out / "history.png")
    _close()


def comparison(
    model: Any, held_out: AnnData, adata: AnnData, settings: FitSettings, out: Path, steps: Steps
) -> dict[str, dict[str, float]]:
    """Score the model and the simple rules on held-out cells; return method -> metric -> mean.

    Parameters
    ----------
    model
        Trained model.
    held_out
        Cells to predict.
    adata
        All cells; its control cells of the same types are the source.
    """
    from sccausal import pl, tl

    is_control = adata.obs[settings.target].astype(str).to_numpy() == settings.control
    if settings.labels_key is not None:
        types = set(held_out.obs[settings.labels_key].astype(str))
        is_control &= adata.obs[settings.labels_key].astype(str).isin(types).to_numpy()
    control = adata[is_control].copy()
    table = tl.compare(model, held_out, control=control, seed=settings.seed)
    table.to_csv(out / "comparison.csv", index=False)
    title = "Held-out cells: " + ", ".join(
        sorted(held_out.obs[settings.labels_key or settings.target].astype(str).unique())[:4]
    )
    pl.compare(table, metrics=[m for m in SHOWN if m in set(table["metric"])], title=title, show=False,
               save=out / "comparison.png")  # fmt: skip
    _close()
    wide = table.pivot_table(index="method", columns="metric", values="value", aggfunc="mean", sort=False)
    steps.table(wide[[m for m in SHOWN if m in wide]], title)
    _responses(model, held_out, control, settings, out)
    return {str(k): {str(m): float(v) for m, v in row.items()} for k, row in wide.iterrows()}


def _responses(model: Any, held_out: AnnData, control: AnnData, settings: FitSettings, out: Path) -> None:
    """Predicted cells as h5ad, and predicted against observed change for up to three interventions."""
    import matplotlib.pyplot as plt

    from sccausal import pl
    from sccausal.tl._compare import _log1p

    labels = held_out.obs[settings.target].astype(str)
    wished = labels.value_counts().index.tolist()
    predicted = model.perturbation.predict(control, wished, seed=settings.seed)
    predicted.write_h5ad(out / "predictions.h5ad")
    counts = model.prediction_units == "counts"
    true, base = (_log1p(a, "counts" if counts else None, counts) for a in (held_out, control))
    shown = wished[:3]
    figure, axes = plt.subplots(1, len(shown), figsize=(3.5 * len(shown), 3.4), squeeze=False, layout="constrained")
    for ax, name in zip(axes[0], shown, strict=True):
        cells = _log1p(predicted[predicted.obs["intervention"].astype(str) == name].copy())
        pl.response(cells, true[(labels == name).to_numpy()], base, title=name, ax=ax)
    figure.savefig(out / "response.png", dpi=200, bbox_inches="tight")
    _close()


def network(model: Any, out: Path, steps: Steps, *, adata: AnnData, truth: pd.DataFrame | None = None) -> int:
    """Write and draw the network; beside a known one, score it with simple rules. Returns the number of edges."""
    from sccausal import pl

    if "grn" not in model.capabilities:
        steps.say(f"{type(model).__name__} offers no network")
        return 0
    found = model.grn.network()
    found.write(out / "network.csv")
    pl.grn(
        found,
        top=60,
        truth=truth,
        show=False,
        save=out / "network.png",
        title=f"{type(model).__name__}: 60 strongest edges",
    )
    _close()
    steps.say(f"{len(found)} edges among {len(found.genes)} genes")
    if truth is not None:
        scores = network_scores({type(model).__name__: found}, adata, truth)
        scores.to_csv(out / "network_scores.csv")
        steps.table(scores, "Network against the known one (1 is chance for epr and auprc ratio)")
    return len(found)


def network_scores(networks: dict[str, Network], adata: AnnData, truth: pd.DataFrame) -> pd.DataFrame:
    """Scores of networks, and of two simple rules on the same cells, against a known network."""
    from sccausal import metrics, tl

    regulators = sorted(set(truth["source"]) & set(adata.var_names))
    rules = {"correlation": _correlation(adata), "tl.structure": tl.structure(adata)}
    rows = {}
    for name, net in {**networks, **rules}.items():
        table = metrics.graph_scores(net, truth, regulators=regulators).set_index("metric")["value"]
        rows[name] = {m: float(table[m]) for m in ("epr", "auprc_ratio", "auroc", "direction_accuracy") if m in table}
    return pd.DataFrame(rows).T.rename_axis("method")


def _correlation(adata: AnnData) -> Network:
    from sccausal.grn import Network

    X = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.nan_to_num(np.corrcoef(X, rowvar=False))
    np.fill_diagonal(r, 0.0)
    return Network.from_matrix(r, list(adata.var_names), metadata={"method": "correlation"})


def key_gene_table(model: Any, out: Path, steps: Steps) -> None:
    """Genes each intervention moves most."""
    from sccausal import tl

    targets = list(model.perturbation.targets)
    tables = [tl.key_genes(model, t, n_top=_MAX_KEY_GENES).assign(intervention=t) for t in targets[:50]]
    pd.concat(tables).to_csv(out / "key_genes.csv", index=False)
    # a target seen in combinations only has no change of its own to stand beside the model's
    shown = next((t for t in tables if t["log_fc"].notna().any()), tables[0])
    best = shown[["gene", "score", "sign", "log_fc", "rank_log_fc"]].head(8)
    steps.table(best, f"Genes that {shown['intervention'].iloc[0]} moves most, in the model and as observed")


def identifiability(model: Any, out: Path, steps: Steps) -> None:
    """What can be said about the assumptions of the method."""
    frame = model.identifiability_report().to_frame()
    if frame.empty:
        return
    frame.to_csv(out / "identifiability.csv", index=False)
    shown = [c for c in ("name", "verdict", "statistic") if c in frame]
    steps.table(frame[shown], "Assumptions of the method on these cells; more in identifiability.csv")


def embedding(model: Any, adata: AnnData, split: Split | None, settings: FitSettings, out: Path, steps: Steps) -> None:
    """UMAP of expression, and of integrated expression or else the latent space; cells with both as h5ad."""
    import matplotlib.pyplot as plt

    adata = adata.copy()
    adata.obsm[f"X_{settings.model.lower()}"] = after = model.get_latent_representation(adata)
    name = f"latent of {type(model).__name__}"
    try:
        adata.layers["integrated"] = after = model.get_normalized_expression(adata, return_numpy=True)
        name = "integrated"
    except NotImplementedError:  # raised by scvi-tools for models that do not integrate
        steps.say(f"{type(model).__name__} does not integrate expression; shown are its latent coordinates")
    if split is not None:
        split.apply(adata, "set")
    adata.obsm["X_umap_before"] = _umap(adata.X, settings.seed)
    adata.obsm["X_umap_after"] = _umap(after, settings.seed)
    keys = (settings.batch_key, settings.labels_key, settings.time_key, *settings.concepts, settings.target)
    columns = list(dict.fromkeys(k for k in keys if k is not None))
    figure, axes = plt.subplots(2, len(columns), figsize=(3.1 * len(columns), 5.2), squeeze=False, layout="constrained")
    for row, when, what in zip(axes, ("before", "after"), ("expression", name), strict=True):
        for ax, key in zip(row, columns, strict=True):
            _scatter(ax, adata.obsm[f"X_umap_{when}"], adata.obs[key].astype(str), f"{key}, {what}", when == "after")
    figure.savefig(out / "umap.png", dpi=200, bbox_inches="tight")
    _close()
    adata.write_h5ad(out / "cells.h5ad")


def _umap(X: Any, seed: int) -> np.ndarray:
    import scanpy as sc
    from anndata import AnnData

    cells = AnnData(X)
    sc.pp.pca(cells, n_comps=min(30, min(cells.shape) - 1), random_state=seed)
    sc.pp.neighbors(cells, random_state=seed)
    sc.tl.umap(cells, random_state=seed)
    return cells.obsm["X_umap"]


def _scatter(ax: Axes, points: np.ndarray, labels: pd.Series, title: str, legend: bool) -> None:
    import matplotlib as mpl

    from sccausal.pl._base import PALETTE, SMALL

    levels = sorted(labels.unique())
    colours = PALETTE if len(levels) <= len(PALETTE) else [mpl.colors.to_hex(c) for c in mpl.colormaps["tab20"].colors]
    order = np.random.default_rng(0).permutation(len(points))  # no group hides another
    code = pd.Categorical(labels, categories=levels).codes
    ax.scatter(
        points[order, 0], points[order, 1], s=max(0.5, min(6.0, 12000 / len(points))), lw=0, rasterized=True,
        c=[colours[k % len(colours)] for k in code[order]],
    )  # fmt: skip
    ax.set_title(title, fontsize=8.5)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if legend and len(levels) <= 20:
        handles = [ax.scatter([], [], s=14, color=colours[k % len(colours)], label=v) for k, v in enumerate(levels)]
        ax.legend(handles=handles, fontsize=SMALL, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.02),
                  ncols=2 if len(levels) > 1 else 1, handletextpad=0.2, columnspacing=0.8)  # fmt: skip


def _close() -> None:
    import matplotlib.pyplot as plt

    plt.close("all")
