"""`sccausal fit` with each of the models."""

from __future__ import annotations

import json

import anndata as ad
import pandas as pd
import pytest
from typer.testing import CliRunner

from sccausal import datasets
from sccausal._cli import app
from sccausal._errors import SetupError, UnknownNameError
from sccausal._fit_model import MODELS, parse_edges
from sccausal._workflow import FitSettings
from sccausal.models import model_classes

KEYS = ["--control", "control", "--genes", 0, "--epochs", 2]


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A screen with doubles, a time course and annotated cells as a user's files, and sets of genes."""
    folder = tmp_path_factory.mktemp("files")
    screen = datasets.simulate_perturb_seq(n_cells=500, n_genes=40, n_targets=4, n_doubles=3, seed=0)
    course = datasets.simulate_time_course(30, n_genes=40, n_targets=3, seed=0)
    concepts = datasets.simulate_perturb_seq(n_cells=400, n_genes=40, n_targets=0, n_types=4, condition=True, seed=0)
    for name, adata in {"screen": screen, "course": course, "types": concepts}.items():
        clean = ad.AnnData(adata.layers["counts"].copy(), obs=adata.obs, var=adata.var[[]])
        clean.write_h5ad(folder / f"{name}.h5ad")
    genes = [str(g) for g in screen.var_names]
    sets = "".join(f"set{i}\tmade\t" + "\t".join(genes[10 * i : 10 * i + 10]) + "\n" for i in range(4))
    (folder / "sets.gmt").write_text(sets)
    return folder


def test_every_model_that_predicts_cells_can_be_named():
    able = {name for name, cls in model_classes().items() if "perturbation" in cls.capabilities}
    assert set(MODELS.values()) == able - {"GCRLAE"}  # whose predictions are made with activities of known cells


@pytest.mark.parametrize(
    ("model", "file", "options"),
    [
        ("discrepancyvae", "screen", ["--intervention-key", "intervention"]),
        ("gcrlvae", "screen", ["--intervention-key", "intervention", "--activities", "SETS"]),
        ("lcd", "screen", ["--intervention-key", "intervention"]),
        ("citevae", "course", ["--intervention-key", "intervention", "--time-key", "time"]),
        ("causcell", "types", ["--condition-key", "condition", "--labels-key", "cell_type",
                               "--edge", "cell_type->condition"]),
    ],
)  # fmt: skip
def test_fit(files, tmp_path, model, file, options):
    options = [files / "sets.gmt" if o == "SETS" else o for o in options]
    result = run("fit", files / f"{file}.h5ad", "--model", model, "--out", tmp_path / "out", *KEYS, *options)
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert json.loads((out / "model" / "model.json").read_text())
    cells = ad.read_h5ad(out / "cells.h5ad")
    assert cells.obsm[f"X_{model}"].shape[0] == cells.n_obs
    assert (out / "network.csv").is_file() == ("grn" in model_classes()[MODELS[model]].capabilities)
    if file != "course":  # nothing of a time course is held out unless it is asked for
        table = pd.read_csv(out / "comparison.csv")
        assert {MODELS[model], "no change", "duplicate"} <= set(table["method"])
        assert table["value"].notna().any()
    assert set(pd.read_csv(out / "key_genes.csv")["gene"]) <= set(cells.var_names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "lcd", "condition_key": "c"}, "--condition-key; models that do: scconcrl, causcell"),
        ({"model": "gcrlvae", "intervention_key": "i"}, "--activities"),
        ({"model": "lcd", "intervention_key": "i", "activities": "x.gmt"}, "--activities"),
        ({"model": "citevae", "intervention_key": "i"}, "--time-key"),
        ({"model": "lcd", "intervention_key": "i", "edges": ("a->b",)}, "--edge"),
        ({"model": "scconcrl", "condition_key": "c", "time_key": "t"}, "--time-key"),
    ],
)
def test_options_of_other_models_are_refused(given, message):
    with pytest.raises(SetupError, match=message):
        FitSettings(**given)


def test_misspelt_model():
    with pytest.raises(UnknownNameError, match="scconcrl"):
        FitSettings(model="sconcrl", condition_key="c")


def test_edges():
    assert parse_edges(["a->b", "a -> c", "b->c"]) == {"b": ["a"], "c": ["a", "b"]}
    with pytest.raises(SetupError, match="PARENT->CHILD"):
        parse_edges(["a>b"])
