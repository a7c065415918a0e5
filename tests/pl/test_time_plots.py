from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData
from citevae_data import KEYS, QUIET, log_normalised

from sccausal import CITEVAE, pl, tl
from sccausal._errors import NotSupportedError, SetupError, UnknownNameError
from sccausal.datasets import simulate_time_course
from sccausal.pl._base import GREY


@pytest.fixture(scope="module")
def model():
    cells = log_normalised(simulate_time_course(30, 60, 5, (0.5, 1.0, 3.0), seed=3))
    scvi.settings.seed = 0
    CITEVAE.setup_anndata(cells, **KEYS)
    model = CITEVAE(cells, n_responsive=2, n_invariant=3, n_hidden=16)
    model.train(8, **QUIET)
    return model


def test_trajectories_join_means_over_time(model, tmp_path):
    names = list(model.codec.targets[:2])
    ax = pl.trajectories(model, names, n_cells=30, show=False, save=tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 1000
    assert [t.get_text() for t in ax.get_legend().get_texts()] == names
    table = model.get_trajectories(names, n_cells=30)
    latents = ["responsive_0", "responsive_1"]
    means = table.groupby(["intervention", "time"], sort=False)[latents].mean().to_numpy()
    directions = np.linalg.svd(means - means.mean(0), full_matrices=False)[2][:2].T
    xy = (table[latents].to_numpy() - means.mean(0)) @ directions
    at = (table["intervention"] == names[0]).to_numpy() & (table["time"] == 3.0).to_numpy()
    line = ax.lines[0]
    assert len(line.get_xdata()) == 3
    np.testing.assert_allclose([line.get_xdata()[-1], line.get_ydata()[-1]], xy[at].mean(0), atol=1e-5)
    low, high = ax.get_xlim()
    assert all(low < x < high for line in ax.lines for x in line.get_xdata())  # every mean is in view
    default = pl.trajectories(model, n_cells=20, block="invariant", show=False)
    labels = [t.get_text() for t in default.get_legend().get_texts()]
    assert len(labels) == 6
    colours = {line.get_label(): line.get_color() for line in default.lines}
    assert colours["control"] == GREY and sum(c == GREY for c in colours.values()) == 1
    given = pd.DataFrame(np.eye(2), index=["responsive_0", "responsive_1"], columns=["a", "b"])
    assert pl.trajectories(model, names, axes_of=given, show=False).get_xlabel() == "responsive a"
    with pytest.raises(UnknownNameError, match="respnsive"):
        pl.trajectories(model, block="respnsive", show=False)


def test_lagged_graph_draws_every_edge(model):
    ax = pl.lagged_graph(model, threshold=0.02, show=False)
    assert len(ax.lines) == len(model.get_lagged_graph(0.02))
    empty = pl.lagged_graph(model, threshold=1e3, show=False)
    assert not empty.lines and any("no edge" in t.get_text() for t in empty.texts)
    with pytest.raises(SetupError, match="threshold"):
        pl.lagged_graph(model, threshold=-1)


def test_response_over_time_shows_means_and_what_was_not_measured(model):
    name = model.codec.targets[0]
    cells = model.adata[(model.adata.obs["intervention"] == "control").to_numpy()].copy()
    pred = model.perturbation.predict(cells, [name], times=[0.5, 2.0, 3.0])
    ax = pl.response_over_time(pred, name, model.adata, show=False)
    expected = [np.asarray(pred[(pred.obs["time"] == t).to_numpy(), name].X).mean() for t in (0.5, 2.0, 3.0)]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected, rtol=1e-5)
    points = [p for p in ax.collections if len(p.get_offsets()) == 1 and len(p.get_facecolor()) == 1]
    faces = [tuple(p.get_facecolor()[0][:3]) for p in points[:3]]
    assert faces[1] == (1.0, 1.0, 1.0) and faces[0] != (1.0, 1.0, 1.0)
    with pytest.raises(UnknownNameError, match="nogene"):
        pl.response_over_time(pred, "nogene", show=False)
    with pytest.raises(UnknownNameError, match="other"):
        pl.response_over_time(pred, name, interventions=["other"], show=False)
    with pytest.raises(SetupError, match="times"):
        bare = AnnData(pred.X, obs=pred.obs.drop(columns="time"), var=pred.var)
        pl.response_over_time(bare, name, show=False)


def test_programs_are_the_strongest_loadings_and_enrichment_finds_them(model):
    table = tl.latent_programs(model, top=5)
    loadings = model.latent_loadings()
    assert set(table["latent"]) == {"responsive_0", "responsive_1"}
    up = table[(table["latent"] == "responsive_0") & (table["sign"] == "up")]
    best = loadings["responsive_0"].nlargest(5)
    assert list(up["gene"]) == list(best.index)
    np.testing.assert_allclose(up["loading"], best)
    sets = {"true": list(up["gene"]), "other": [g for g in loadings.index if g not in set(up["gene"])][:20]}
    found = tl.latent_programs(model, ["responsive_0"], top=5, gene_sets=sets, min_size=3)
    own = found[found["community"] == "responsive_0 up"] if "community" in found else found
    assert own.iloc[0].astype(str).str.contains("true").any()
    with pytest.raises(UnknownNameError, match="responsiv_0"):
        tl.latent_programs(model, ["responsiv_0"])
    with pytest.raises(NotSupportedError, match="latent_loadings"):
        tl.latent_programs(object())
