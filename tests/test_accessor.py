"""``adata.causal``: there whatever is imported first, and thin."""

from __future__ import annotations

import inspect
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sccausal as scc
from sccausal._accessor import CausalNamespace
from sccausal._errors import SetupError, UnknownNameError

KEYS = {"intervention_key": "intervention", "control": "control"}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    counts = scc.datasets.simulate_perturb_seq(
        600, 40, 4, n_doubles=2, interventions="knockout", strength=4.0, seed=3, sortability=False
    )
    adata = scc.metrics.log1p_norm(counts)
    return ad.AnnData(adata.X, obs=adata.obs[["intervention"]].copy(), var=adata.var)


@pytest.mark.parametrize("first", ["import sccausal, anndata", "import anndata, sccausal", "import sccausal._accessor"])
def test_registered_whatever_is_imported_first(first):
    code = f"{first}\nimport anndata, numpy\nprint(type(anndata.AnnData(numpy.ones((2, 2))).causal).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["CausalNamespace"]
    assert "Overriding" not in done.stderr


def test_no_finder_is_left_behind():
    code = "import sys, sccausal, anndata\nprint(sum('sccausal' in type(f).__module__ for f in sys.meta_path))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


def test_methods_give_what_the_functions_give(cells):
    here = cells.copy()
    one, two = here.causal.split("unseen_doubles", **KEYS), scc.pp.split(cells, "unseen_doubles", **KEYS)
    assert np.array_equal(one.test, two.test) and len(one.test) > 0
    assert here.causal.encode_interventions("intervention", "control") is None
    assert list(here.obsm["intervention"].columns) == sorted(here.obsm["intervention"].columns)
    pd.testing.assert_frame_equal(
        here.causal.structure(**KEYS).to_frame(), scc.tl.structure(cells.copy(), **KEYS).to_frame()
    )
    direct = here.causal.clipr(n_bootstrap=0, **KEYS)
    assert "clipr" in here.uns and direct.direct_effects.shape[1] == here.n_vars


def test_compare_scores_these_cells(cells):
    split = cells.causal.split("unseen_doubles", **KEYS)
    train, test = cells[split.train].copy(), cells[split.test].copy()
    scc.DiscrepancyVAE.setup_anndata(train, **KEYS)
    model = scc.DiscrepancyVAE(train)
    model.train(1, accelerator="cpu", enable_progress_bar=False)
    table = test.causal.compare(model, baselines=["Additive"], metrics=["bulk"])
    assert {"DiscrepancyVAE", "additive", "no change", "duplicate"} == set(table["method"])
    assert set(table["intervention"]) == set(test.obs["intervention"])


def test_interventions_table(cells):
    table = cells.causal.interventions(**KEYS).set_index("intervention")
    # one label per combination, whatever the order of its parts in the column
    counts = cells.obs["intervention"].map(lambda label: "+".join(sorted(label.split("+")))).value_counts()
    assert table.index[0] == "control" and table.loc["control", "n_targets"] == 0
    assert table["n_cells"].to_dict() == counts.to_dict()
    assert np.isnan(table.loc["control", "own_change"])
    knocked = table.iloc[1:]
    assert (knocked["own_change"] < 0).all() and (knocked["measured"] == 1).all()
    name = knocked.index[knocked["n_targets"] == 1][0]
    mean = {k: cells[(cells.obs["intervention"] == k).to_numpy(), name].X.mean() for k in (name, "control")}
    assert knocked.loc[name, "own_change"] == pytest.approx(mean[name] - mean["control"], abs=1e-5)


def test_interventions_of_unmeasured_targets_and_spellings(cells):
    labels = np.where(np.arange(cells.n_obs) % 3 == 0, "B+A", np.where(np.arange(cells.n_obs) % 3 == 1, "A+B", "no"))
    adata = ad.AnnData(cells.X, obs=pd.DataFrame({"guide": labels}, index=cells.obs_names), var=cells.var)
    table = adata.causal.interventions("guide", control="no")
    assert table["intervention"].tolist() == ["no", "A+B"]
    assert table.loc[1, "measured"] == 0 and np.isnan(table.loc[1, "own_change"])
    with pytest.raises(UnknownNameError, match="layer"):
        adata.causal.interventions("guide", control="no", layer="counts")
    with pytest.raises(SetupError, match="guide"):
        adata.causal.interventions("guides", control="no")
    assert adata.obs.columns.tolist() == ["guide"] and not adata.uns


def test_every_method_is_documented_and_refers_to_a_function():
    for name, method in inspect.getmembers(CausalNamespace, inspect.isfunction):
        if not name.startswith("_"):
            text = inspect.getdoc(method) or ""
            assert "Parameters" in text or ":func:`sccausal." in text, name
