"""The commands and the code of the page that repeats the papers' tables: they parse, and they run on made files."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import sccausal as scc
from sccausal._cli import app

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "user_guide" / "reproduce.md"
if not PAGE.exists():  # a source package without the documentation
    pytest.skip("the documentation is not here", allow_module_level=True)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)


def commands(start: str) -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.startswith(start)]


class Reached(Exception):
    """The command was understood; what comes next would take hours."""


def reached(*args, **kwargs):
    raise Reached


@pytest.mark.parametrize("command", commands("sccausal benchmark run"))
def test_benchmark_command_is_understood(command, monkeypatch):
    asked = {}
    monkeypatch.setattr(scc.benchmark, "run", lambda task, out, **kwargs: asked.update(kwargs, task=task) or reached())
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert isinstance(result.exception, Reached), result.output
    assert asked["task"] in scc.benchmark.TASK_NAMES
    keys = asked["data"][0].keys
    assert asked["task"] == "grn" or any((keys.intervention_key, keys.condition_key, keys.batch_key, keys.concept_keys))
    if asked["models"]:
        assert set(asked["models"]) <= set(scc.benchmark.methods(asked["task"]))


@pytest.mark.parametrize("command", commands("python benchmarks/"))
def test_script_command_is_understood(command, monkeypatch):
    _, script, *arguments = shlex.split(command)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(f"reproduce_{Path(script).stem}", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("run", "Results"):
        monkeypatch.setattr(module, name, reached, raising=False)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(Reached):
        module.main()


def calls(block: str) -> list[tuple[str, list[str]]]:
    """Calls of this package in a block of code: dotted name and keywords."""
    found = []
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if re.fullmatch(r"scc(\.\w+)+", name):
                found.append((name, [k.arg for k in node.keywords if k.arg is not None]))
    return found


def test_code_of_the_page_names_what_there_is():
    seen = [call for block in blocks("python") for call in calls(block)]
    assert len(seen) > 15
    for name, keywords in seen:
        target = scc
        for part in name.split(".")[1:]:
            target = getattr(target, part)
        known = inspect.signature(target).parameters
        open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        assert open_ended or set(keywords) <= set(known), name


def made(task: str) -> pd.DataFrame:
    """A small file of the form the page writes for a task."""
    if task == "time":
        adata = scc.datasets.simulate_time_course(12, 40, 4, (1.0, 2.0, 4.0), seed=0)
    elif task == "doubles":
        adata = scc.datasets.simulate_perturb_seq(900, 40, 5, n_doubles=6, seed=0, sortability=False)
    else:
        adata = scc.datasets.simulate_perturb_seq(
            500, 40, 0, n_types=3, n_batches=2, condition=True, seed=0, sortability=False
        )
    network = adata.uns["truth"]["network"]
    cells = scc.metrics.log1p_norm(adata)
    cells.uns = {"truth": {"network": network}} if task == "grn" else {}
    for name in ("donor", "tissue", "treatment"):
        cells.obs[name] = pd.Categorical(np.random.default_rng(len(name)).choice(["a", "b"], cells.n_obs))
    return cells


@pytest.mark.slow
@pytest.mark.parametrize("task", ["doubles", "condition", "time", "grn", "disentangle", "integrate"])
def test_benchmark_command_runs_on_a_made_file(task, tmp_path, monkeypatch):
    """Rules and reference lines alone, in the smallest form."""
    command = next(c for c in commands("sccausal benchmark run") if f" run {task} " in c)
    words = shlex.split(command)[1:]
    monkeypatch.chdir(tmp_path)
    made(task).write_h5ad(tmp_path / words[words.index("--data") + 1])
    words[words.index("--seeds") + 1] = "1"
    result = CliRunner().invoke(app, [*words, "--small", "--model", "none"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert (tmp_path / words[words.index("--out") + 1] / "report.md").exists()
