from __future__ import annotations

import json
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from sccausal._cli import _parse_arguments, app
from sccausal._errors import SetupError
from sccausal._fit_model import train_model
from sccausal._steps import Steps
from sccausal._workflow import FitSettings
from sccausal.grn import Network

runner = CliRunner()

OUTPUTS = {
    "cells.h5ad", "comparison.csv", "comparison.png", "history.png", "key_genes.csv", "model", "network.csv",
    "network.png", "network_scores.csv", "predictions.h5ad", "response.png", "run.json", "simulated.h5ad", "split.json",
    "summary.json", "umap.png",
}  # fmt: skip


def run(*arguments: object):
    return runner.invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    result = run("demo", "--out", out, "--fast")
    assert result.exit_code == 0, result.output
    return out, result.output


@pytest.fixture(scope="module")
def cells(demo, tmp_path_factory):
    """Counts of the demo as a user's file."""
    path = tmp_path_factory.mktemp("file") / "cells.h5ad"
    adata = ad.read_h5ad(demo[0] / "simulated.h5ad")
    del adata.layers["counterfactual"], adata.layers["counterfactual_mean"], adata.uns["truth"]
    adata[:, :60].copy().write_h5ad(path)
    return path


class TestHelp:
    def test_is_fast_because_nothing_heavy_is_imported(self):
        code = (
            "import sys; from sccausal._cli import app\n"
            "try: app(['--help'])\n"
            "except SystemExit: pass\n"
            "heavy = {'torch', 'scvi', 'scanpy', 'anndata', 'pandas', 'matplotlib'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "demo" in done.stdout
        assert time.perf_counter() - start < 10

    def test_version(self):
        assert run("--version").output.startswith("sccausal ")


class TestDemo:
    def test_writes_everything(self, demo):
        out, text = demo
        assert {p.name for p in out.iterdir()} >= OUTPUTS
        for word in ("Held-out cells", "duplicate", "ridge on type means", "auprc ratio", "true, noise-free"):
            assert word in " ".join(text.split())

    def test_held_out_cells_are_not_in_training(self, demo):
        out, _ = demo
        split = json.loads((out / "split.json").read_text())
        trained = ad.read_h5ad(out / "model" / "adata.h5ad")
        everything = ad.read_h5ad(out / "cells.h5ad")
        test = set(everything.obs_names[split["test"]])
        assert test
        assert test.isdisjoint(trained.obs_names)
        assert set(everything.obs.loc[everything.obs["set"] == "test"].index) == test

    def test_tables_can_be_read(self, demo):
        out, _ = demo
        table = pd.read_csv(out / "comparison.csv")
        assert {"ScConCRL", "no change", "mean shift", "duplicate"} <= set(table["method"])
        exact = table[(table["method"] == "no change") & (table["metric"] == "nmse_top")]["value"]
        np.testing.assert_allclose(exact, 1.0, rtol=1e-6)
        assert set(Network.read(out / "network.csv").genes) == set(ad.read_h5ad(out / "cells.h5ad").var_names)
        assert json.loads((out / "summary.json").read_text())["cells"] == 600

    def test_a_finished_run_is_not_repeated(self, demo):
        out, _ = demo
        result = run("demo", "--out", out, "--fast")
        assert result.exit_code == 0, result.output
        assert "is finished" in result.output

    def test_finished_training_is_taken_from_the_folder(self, demo):
        settings = FitSettings(condition_key="condition", control="control")
        model = train_model(None, demo[0], settings, Steps(), resume=True)
        assert model.is_trained
        assert model.adata.n_obs == ad.read_h5ad(demo[0] / "model" / "adata.h5ad").n_obs

    def test_another_command_is_refused(self, demo):
        out, _ = demo
        result = run("demo", "--out", out, "--fast", "--seed", 1)
        assert result.exit_code == 2
        assert "--overwrite" in result.output

    def test_folder_with_foreign_files_is_left_alone(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("precious")
        result = run("demo", "--out", tmp_path, "--fast", "--overwrite")
        assert result.exit_code == 2
        assert (tmp_path / "thesis.txt").read_text() == "precious"


class TestPredictAndGrn:
    def test_predict(self, demo, tmp_path):
        target = tmp_path / "new" / "predicted.h5ad"
        result = run("predict", demo[0], "-i", "stimulated", "-o", target)
        assert result.exit_code == 0, result.output
        predicted = ad.read_h5ad(target)
        assert set(predicted.obs["intervention"]) == {"stimulated"}
        assert predicted.n_obs == (ad.read_h5ad(demo[0] / "model" / "adata.h5ad").obs["condition"] == "control").sum()

    def test_predict_from_new_cells_given_as_counts(self, demo, tmp_path):
        simulated = ad.read_h5ad(demo[0] / "simulated.h5ad")
        some = simulated[(simulated.obs["condition"] == "control").to_numpy()][:20].copy()
        some.write_h5ad(tmp_path / "some.h5ad")
        result = run("predict", demo[0], "--cells", tmp_path / "some.h5ad", "-o", tmp_path / "p.h5ad")
        assert result.exit_code == 0, result.output
        predicted = ad.read_h5ad(tmp_path / "p.h5ad")
        assert list(predicted.obs["source_cell"]) == list(some.obs_names)
        assert predicted.X.max() < np.log1p(1e4) + 3

    def test_unknown_intervention_is_one_line_with_a_suggestion(self, demo, tmp_path):
        result = run("predict", demo[0], "-i", "stimulatd", "-o", tmp_path / "p.h5ad")
        assert result.exit_code == 2
        assert "Did you mean 'stimulated'" in " ".join(result.output.split())
        assert "Traceback" not in result.output
        assert not (tmp_path / "p.h5ad").exists()

    @pytest.mark.parametrize("ending", ["csv", "parquet", "graphml"])
    def test_grn(self, demo, tmp_path, ending):
        result = run("grn", demo[0], "-o", tmp_path / f"n.{ending}", "--top", 20, "--figure", tmp_path / "n.png")
        assert result.exit_code == 0, result.output
        assert len(Network.read(tmp_path / f"n.{ending}")) == 20
        assert (tmp_path / "n.png").exists()

    def test_wrong_endings_and_folders(self, demo, tmp_path):
        assert run("grn", demo[0], "-o", tmp_path / "n.xls").exit_code == 2
        assert run("predict", demo[0], "-o", tmp_path / "p.csv").exit_code == 2
        assert run("grn", tmp_path, "-o", tmp_path / "n.csv").exit_code == 2


class TestFit:
    keys = ("--condition-key", "condition", "--control", "control", "--labels-key", "cell_type", "--batch-key", "batch")

    def test_counts_file(self, cells, tmp_path):
        out = tmp_path / "fit"
        result = run("fit", cells, "-o", out, *self.keys, "--epochs", 2, "--genes", 30, "--hold-out", "type_1",
                     "--set", "n_domain_latent=4")  # fmt: skip
        assert result.exit_code == 0, result.output
        fitted = ad.read_h5ad(out / "model" / "adata.h5ad")
        assert 30 <= fitted.n_vars < 60
        assert not ((fitted.obs["cell_type"] == "type_1") & (fitted.obs["condition"] == "stimulated")).any()
        assert fitted.X.max() < np.log1p(1e4)
        assert json.loads((out / "summary.json").read_text())["held_out"] == ["type_1"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("--condition-key", "conditon"), "condition"),
            (("--control", "contrl"), "Did you mean 'control'"),
            (("--labels-key", "celltype"), "cell_type"),
            (("--model", "scvi"), "scconcrl"),
            (("--likelihood", "poisson"), "nb"),
            (("--set", "n_domain"), "NAME=VALUE"),
            (("--set", "n_domains=3"), "n_domains"),
            (("--hold-out", "type_9"), "type_9"),
            (("--epochs", "0"), "at least 1"),
        ],
    )
    def test_wrong_input_is_one_clean_line(self, cells, tmp_path, change, message):
        result = run("fit", cells, "-o", tmp_path / "out", *self.keys, *change)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
        assert "Traceback" not in result.output

    def test_control_must_be_named_and_the_file_must_exist(self, cells, tmp_path):
        result = run("fit", cells, "-o", tmp_path / "o", "--condition-key", "condition")
        assert result.exit_code == 2
        assert "stimulated" in result.output
        result = run("fit", tmp_path / "none.h5ad", "-o", tmp_path / "o", *self.keys)
        assert result.exit_code == 2
        (tmp_path / "text.h5ad").write_text("no h5ad")
        result = run("fit", tmp_path / "text.h5ad", "-o", tmp_path / "o", *self.keys)
        assert result.exit_code == 2
        assert "cannot be read as h5ad" in " ".join(result.output.split())

    def test_counts_are_needed_for_nb(self, cells, tmp_path):
        adata = ad.read_h5ad(cells)
        adata.X = adata.X * 0.5
        adata.write_h5ad(tmp_path / "half.h5ad")
        result = run("fit", tmp_path / "half.h5ad", "-o", tmp_path / "o", *self.keys, "--likelihood", "nb")
        assert result.exit_code == 2
        assert "needs counts" in " ".join(result.output.split())


def test_model_arguments_are_read_as_values():
    assert _parse_arguments(["a=8", "b=none", "c=None", "d=0.5", "e=[1, 2]"]) == {
        "a": 8, "b": "none", "c": None, "d": 0.5, "e": [1, 2],
    }  # fmt: skip
    with pytest.raises(SetupError, match="NAME=VALUE"):
        _parse_arguments(["a b=3"])
