"""Draw every plot of the package on simulated cells, and write the gallery page.

    python docs/make_gallery.py            # all, some minutes on one core
    python docs/make_gallery.py grn compare

Writes ``docs/_static/gallery/<function>.png`` and ``docs/gallery.md``. Figures keep the size the functions give them,
so that the page shows whether they can be read one column (85 mm) wide.
"""

from __future__ import annotations

import inspect
import io
import logging
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from PIL import Image

import sccausal as scc

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from small_png import write_small  # noqa: E402  (the folder is known only now)

PICTURES = HERE / "_static" / "gallery"
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
DPI = 130

DRAWN: dict[str, Callable[[], Any]] = {}
ROOMS = {
    "Predictions and their judgement": ("response", "compare", "history"),
    "Networks": ("grn", "direct_vs_total", "clipr_modules"),
    "Communities of regulators": ("edge_mixture", "community_stability", "communities", "cohesion"),
    "Latents": ("alignment", "tmex_null", "latent_graph"),
    "Counterfactuals of concepts": ("counterfactual", "gene_set_response", "spatial_effect"),
    "Time": ("response_over_time", "trajectories", "lagged_graph"),
}


def draws(function: Callable[[], Any]) -> Callable[[], Any]:
    """Register what draws the plot of the same name."""
    DRAWN[function.__name__] = function
    return function


# --- cells and models, each made once ---------------------------------------------------------------------------------


@cache
def condition() -> tuple[Any, AnnData, AnnData]:
    """ScConCRL trained without the stimulated cells of one type; these cells, and control cells."""
    raw = scc.datasets.simulate_perturb_seq(
        2000, 200, 4, n_types=4, n_batches=2, condition=True, condition_strength=0.5, type_response=0.25, seed=1
    )
    adata = scc.metrics.log1p_norm(raw)
    adata.uns["network"] = raw.uns["truth"]["network"]
    adata = adata[(raw.obs["intervention"] == "control").to_numpy() | (np.arange(raw.n_obs) % 2 == 0)].copy()
    keys = {"condition_key": "condition", "control": "control", "labels_key": "cell_type"}
    split = scc.pp.split(adata, "condition_x_type", hold_out="type_1", **keys)
    train, test = adata[split.train].copy(), adata[split.test].copy()
    scc.ScConCRL.setup_anndata(train, batch_key="batch", **keys)
    model = scc.ScConCRL(train)
    model.train(**QUIET)
    return model, test, adata[(adata.obs["condition"] == "control").to_numpy()].copy()


@cache
def screen() -> Any:
    """Direct effects in a screen of 24 genes."""
    adata = scc.datasets.simulate_stationary(24, n_cells=200, measurement="gaussian", noise_ratio=1.0, seed=0)
    return scc.tl.clipr(adata, intervention_key="intervention", control="control", n_bootstrap=100)


@cache
def modules() -> tuple[AnnData, pd.DataFrame, dict[str, list[str]]]:
    """Cells in which regulators act mostly within four modules; a base network with false edges; the modules."""
    rng = np.random.default_rng(0)
    n_modules, size, n_targets, n_cells = 4, 9, 80, 1500
    n_tf = n_modules * size
    module = np.repeat(np.arange(n_modules), size)
    acts = rng.random((n_tf, n_tf)) < np.where(module[:, None] == module, 0.4, 0.02)
    np.fill_diagonal(acts, False)
    weights = acts * rng.choice([-1, 1], acts.shape, p=[0.2, 0.8])
    weights = weights * 0.7 / np.abs(np.linalg.eigvals(weights)).max()  # feedback, but stable
    latent = rng.normal(size=(n_cells, n_tf)) @ np.linalg.inv(np.eye(n_tf) - weights)
    down = np.zeros((n_tf, n_targets))
    for t in range(n_targets):
        down[rng.choice(np.flatnonzero(module == rng.integers(n_modules)), 3, replace=False), t] = 0.5
    x = np.hstack([latent, latent @ down + rng.normal(size=(n_cells, n_targets))])
    names = [f"TF{i + 1}" for i in range(n_tf)] + [f"gene{i + 1}" for i in range(n_targets)]
    counts = rng.poisson(6 * np.exp(0.5 * (x - x.mean(0)) / x.std(0)))
    adata = scc.metrics.log1p_norm(AnnData(counts.astype(np.float32), var=pd.DataFrame(index=names)))
    candidate = np.hstack([acts, down != 0]) | (rng.random((n_tf, n_tf + n_targets)) < 0.25)
    source, target = np.nonzero(candidate)
    base = pd.DataFrame({"source": np.take(names, source), "target": np.take(names, target)})
    base = base[base["source"] != base["target"]]
    scc.tl.grn(adata, base)
    scc.tl.tf_communities(adata, n_runs=200, n_permutations=500, n_rewired=0)
    return adata, base, {f"module {k + 1}": names[k * size : (k + 1) * size] for k in range(n_modules)}


@cache
def aligned() -> Any:
    """Autoencoder whose latents are aligned with the activities of the modules."""
    adata, _, sets = modules()
    adata = adata.copy()
    scc.GCRLAE.setup_anndata(adata)
    model = scc.GCRLAE(adata, activities=sets)
    model.train(60, **QUIET)
    return model


@cache
def latents() -> Any:
    """Latent variables that obey a causal graph, moved by interventions that cut their edges."""
    adata = scc.datasets.simulate_latent_sem(2000, intervention="do", seed=0)
    scc.DiscrepancyVAE.setup_anndata(adata, intervention_key="intervention", control="control")
    model = scc.DiscrepancyVAE(adata, intervention="do", l1_on="graph")
    model.train(60, **QUIET)
    return model


@cache
def concepts() -> tuple[Any, AnnData]:
    """CausCell on cells with concepts a -> b, laid out on a tissue in which b forms a stripe."""
    adata = scc.metrics.log1p_norm(scc.datasets.simulate_concepts(1200, 100, seed=0))
    rng = np.random.default_rng(0)
    adata.obsm["spatial"] = rng.uniform(size=(adata.n_obs, 2))
    adata.obsm["spatial"][:, 0] += 0.8 * (adata.obs["b"] == "b1").to_numpy()
    scc.CausCell.setup_anndata(adata, concept_keys=["a", "b"])
    model = scc.CausCell(adata, dag={"b": ["a"]}, n_hidden=64, n_tokens=2, n_layers=2)
    model.train(80, train_size=1.0, **QUIET)
    return model, adata


@cache
def course() -> tuple[Any, AnnData]:
    """CITEVAE on cells that differentiate under activations of single genes."""
    adata = scc.metrics.log1p_norm(scc.datasets.simulate_time_course(50, n_genes=100, n_targets=8, seed=7))
    scc.CITEVAE.setup_anndata(adata, intervention_key="intervention", control="control", time_key="time")
    model = scc.CITEVAE(adata)
    model.train(max_epochs=40, **QUIET)
    return model, adata


@cache
def tracked() -> Any:
    """CITEVAE on cells that are followed one by one, from which lagged edges can be learned."""
    adata = scc.datasets.simulate_temporal_factors(1000, n_times=3, n_responsive=4, seed=5)
    keys = {"intervention_key": "intervention", "control": "control", "time_key": "time", "track_key": "track"}
    scc.CITEVAE.setup_anndata(adata, **keys)
    model = scc.CITEVAE(adata, n_invariant=4, n_responsive=4, intervention_embedding="onehot", pairing="tracked")
    model.train(max_epochs=40, **QUIET)
    return model


# --- one plot per function --------------------------------------------------------------------------------------------


@draws
def response():
    model, true, control = condition()
    kind = control[(control.obs["cell_type"] == "type_1").to_numpy()].copy()
    predicted = model.perturbation.predict(kind, interventions=["stimulated"])
    return scc.pl.response(predicted, true, kind, top=50, return_fig=True)


@draws
def compare():
    model, true, control = condition()
    table = scc.tl.compare(model, true, control=control)
    metrics = ["rmse", "pearson_change", "nmse_top", "energy_distance", "direction_match"]
    return scc.pl.compare(table, metrics=metrics, return_fig=True)


@draws
def history():
    model, _, _ = condition()
    return scc.pl.history(model, max_panels=6, return_fig=True)


@draws
def grn():
    model, true, _ = condition()
    network = model.grn.network()
    return scc.pl.grn(network, top=25, truth=true.uns["network"], n_labels=10, return_fig=True)


@draws
def direct_vs_total():
    result = screen()
    return scc.pl.direct_vs_total(result, return_fig=True)


@draws
def clipr_modules():
    result = screen()
    modules, _ = scc.tl.clipr_modules(result, min_size=2, cut=0.8)
    return scc.pl.clipr_modules(result, modules, return_fig=True)


@draws
def edge_mixture():
    adata, _, _ = modules()
    return scc.pl.edge_mixture(adata, return_fig=True)


@draws
def community_stability():
    adata, _, _ = modules()
    return scc.pl.community_stability(adata, return_fig=True)


@draws
def communities():
    adata, _, _ = modules()
    return scc.pl.communities(adata, return_fig=True)


@draws
def cohesion():
    adata, _, _ = modules()
    return scc.pl.cohesion(adata, return_fig=True)


@draws
def alignment():
    model = aligned()
    return scc.pl.alignment(model, return_fig=True)


@draws
def tmex_null():
    test = aligned().permutation_test()
    return scc.pl.tmex_null(test, return_fig=True)


@draws
def latent_graph():
    model = latents()
    return scc.pl.latent_graph(model, threshold=0.3, return_fig=True)


@draws
def counterfactual():
    model, adata = concepts()
    after = model.counterfactual(adata, {"a": "a1"})
    return scc.pl.counterfactual(adata, after, "a", return_fig=True)


@draws
def gene_set_response():
    model, adata = concepts()
    genes = adata.var_names[adata.var["acts_b"]]
    do = {"b": list(adata.obs["b"].cat.categories), "a": ["a0", "a1"]}
    table = scc.tl.gene_set_response({"CausCell": model}, do, genes)
    return scc.pl.gene_set_response(table, return_fig=True)


@draws
def spatial_effect():
    model, adata = concepts()
    after = model.counterfactual(adata, {"b": "b1"})
    genes = adata.var_names[adata.var["acts_b"]]
    return scc.pl.spatial_effect(adata, after, genes, return_fig=True)


@draws
def response_over_time():
    model, adata = course()
    targets = model.perturbation.targets[:2]
    predicted = model.perturbation.predict(interventions=["control", *targets], times=[0.5, 1, 2, 3, 4, 6])
    return scc.pl.response_over_time(predicted, targets[0], adata, return_fig=True)


@draws
def trajectories():
    model, _ = course()
    return scc.pl.trajectories(model, return_fig=True)


@draws
def lagged_graph():
    model = tracked()
    return scc.pl.lagged_graph(model, threshold=0.12, return_fig=True)


# --- files ------------------------------------------------------------------------------------------------------------


def save(figure: Any, path: Path) -> int:
    """Write a figure and return its size in bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    with Image.open(buffer) as image:
        return write_small(image, path)


def page() -> str:
    """Text of the gallery page."""
    parts = [
        "# Gallery",
        "Every plot of {doc}`pl <api/pl>`, drawn on simulated cells by `docs/make_gallery.py` (`make gallery`), in the "
        "size the functions give it: to be read one column (85 mm) wide. All take `ax` (or `axes` where there are "
        "several panels), `show`, `save` and `return_fig`, and change no global setting.",
    ]
    for room, names in ROOMS.items():
        parts.append(f"## {room}")
        for name in names:
            lines = inspect.getsource(DRAWN[name]).splitlines()[2:]
            code = textwrap.dedent("\n".join(lines)).replace(", return_fig=True", "").replace("return scc", "scc")
            code = "\n".join(line for line in code.splitlines() if line.split("=")[-1].strip() not in _SOURCES)
            code = code.replace("aligned().", "model.")
            summary = inspect.cleandoc(getattr(scc.pl, name).__doc__).splitlines()[0]
            parts += [
                f"### `pl.{name}`",
                f"{summary} {{func}}`API <sccausal.pl.{name}>`",
                f"![{summary}](_static/gallery/{name}.png)",
                f"```python\n{code}\n```",
            ]
    return "\n\n".join(parts) + "\n"


_SOURCES = {"condition()", "screen()", "modules()", "aligned()", "latents()", "concepts()", "course()", "tracked()"}


def main(names: list[str]) -> None:
    """Draw the named plots (default all) and write the page."""
    warnings.filterwarnings("ignore")
    for logger in ("lightning.pytorch", "lightning.fabric", "sccausal"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    for name in names or DRAWN:
        scc.settings.seed = 0
        start = time.perf_counter()
        size = save(DRAWN[name](), PICTURES / f"{name}.png")
        print(f"{name}: {time.perf_counter() - start:.1f} s, {size / 1024:.0f} kB", flush=True)
    (HERE / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
