from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData

from sccausal import pl
from sccausal._errors import NotSupportedError, SetupError
from sccausal.datasets import simulate_latent_sem
from sccausal.models import GCRLAE, GCRLVAE, DiscrepancyVAE

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return simulate_latent_sem(400, intervention="do", seed=0)


@pytest.fixture(scope="module")
def sets(adata) -> dict[str, list[str]]:
    return {f"set {k}": list(adata.var_names[6 * k : 6 * k + 6]) for k in range(4)}


def fitted(cls, adata, **init):
    scvi.settings.seed = 0
    cls.setup_anndata(adata, intervention_key="intervention", control="control")
    model = cls(adata, **init)
    model.train(12, **QUIET)
    return model


def test_alignment_shows_both_sides(adata, sets, tmp_path):
    model = fitted(GCRLAE, adata, activities=sets)
    axes = pl.alignment(model, show=False, save=tmp_path / "a.png")
    assert len(axes) == 2 and (tmp_path / "a.png").stat().st_size > 1000
    shown = np.asarray(axes[0].images[0].get_array())
    z, t = (model.get_latent_representation(representation=r) for r in ("aligned", "activity"))
    assert shown[1, 1] == pytest.approx(np.corrcoef(t[:, 1], z[:, 1])[0, 1], abs=1e-5)
    assert [t.get_text() for t in axes[0].get_xticklabels()] == ["global", *sets]
    only = pl.alignment(fitted(GCRLVAE, adata, activities=sets), show=False)
    assert len(only) == 1


def test_null_shows_the_observed_scores(adata, sets):
    test = fitted(GCRLAE, adata, activities=sets).permutation_test(99)
    ax = pl.tmex_null(test, show=False)
    lines = sorted(line.get_xdata()[0] for line in ax.lines)
    assert lines == pytest.approx(sorted(t.observed for t in test.tests.values()))
    assert "p = " in ax.get_legend().get_texts()[0].get_text() + ax.get_legend().get_texts()[1].get_text()


def test_latent_graph_draws_edges_and_interventions(adata):
    model = fitted(DiscrepancyVAE, adata, intervention="do", l1_on="graph")
    ax = pl.latent_graph(model, threshold=0.3, show=False)
    arrows = [a for a in ax.texts if getattr(a, "arrow_patch", None) is not None]
    assert len(arrows) == len(model.get_latent_graph(0.3))
    text = " ".join(t.get_text() for t in ax.texts)
    assert all(name in text for name in model.codec.targets)
    assert "not identify" not in text
    shifts = fitted(DiscrepancyVAE, simulate_latent_sem(300, seed=0))
    assert any("not identify" in t.get_text() for t in pl.latent_graph(shifts, show=False).texts)
    with pytest.raises(SetupError, match="threshold"):
        pl.latent_graph(model, threshold=-1)
    with pytest.raises(NotSupportedError, match="activities"):
        pl.alignment(model)


def test_names_of_the_table(adata):
    table = fitted(DiscrepancyVAE, adata, n_latent=5).get_intervention_targets()
    assert isinstance(table, pd.DataFrame)
    assert list(table) == ["intervention", "latent", "probability", "magnitude", "known", "explained"]
