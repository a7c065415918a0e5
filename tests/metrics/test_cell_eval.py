"""Agreement with cell-eval, the package that defines the scores of the Virtual Cell Challenge.

``cell_eval/expected.csv`` was computed by cell-eval 0.8.2 (profile "vcc", Python 3.11) on ``cell_eval/cells.npz``; see
the page on judging for how to compute it again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sccausal import metrics as m

HERE = Path(__file__).parent / "cell_eval"


@pytest.fixture(scope="module")
def screen():
    stored = np.load(HERE / "cells.npz")
    return {k: stored[k] for k in stored.files}, pd.read_csv(HERE / "expected.csv").set_index("perturbation")


def means(screen, names):
    cells = screen[0]
    return [np.array([cells[side][cells["label"] == n].mean(axis=0) for n in names]) for side in ("pred", "real")]


def test_mean_absolute_error(screen):
    names = list(screen[1].index)
    pred, real = means(screen, names)
    found = [m.mae(p, t) for p, t in zip(pred, real, strict=True)]
    np.testing.assert_allclose(found, screen[1]["mae"], atol=1e-4)


def test_discrimination_score_without_the_own_gene(screen):
    names, genes = list(screen[1].index), screen[0]["genes"].tolist()
    pred, real = means(screen, names)
    control = screen[0]["real"][screen[0]["label"] == "non-targeting"].mean(axis=0)
    own = [genes.index(n) if n in genes else -1 for n in names]
    found = m.discrimination_score(pred, real, metric="l1", reference=control, denominator="n", own=own)
    np.testing.assert_allclose(found, screen[1]["discrimination_score_l1"], atol=1e-9)
    assert len(set(found)) > 3  # the cells were made so that not everything is right


def test_differential_expression_score(screen):
    cells, expected = screen
    control = cells["real"][cells["label"] == "non-targeting"].astype(float)
    found = []
    for name in expected.index:
        pred, real = (cells[side][cells["label"] == name].astype(float) for side in ("pred", "real"))
        with np.errstate(divide="ignore"):
            fold = np.log2(np.expm1(pred.mean(axis=0)) / np.expm1(control.mean(axis=0)))
        tests = [m.de_test(x, control, "wilcoxon") for x in (pred, real)]
        found.append(m.de_overlap(*tests, size=fold))
    np.testing.assert_allclose(np.nan_to_num(found), expected["overlap_at_N"], atol=1e-9)
