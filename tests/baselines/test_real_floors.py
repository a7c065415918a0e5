"""The floors of the simple rules on real cells, as known from earlier, independent runs."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from sccausal import baselines as bl
from sccausal import metrics as m

KEYS = {"condition_key": "condition", "control": "control", "labels_key": "cell_type"}
# normalised MSE and Pearson of change over the top 100 genes, mean over the seven held-out types
FLOORS = {
    "no change": (1.0, 0.0),
    "mean shift": (0.229, 0.890),
    "per-gene regression": (0.184, 0.900),
    "nearest type": (0.080, 0.948),
    "ridge on type means": (0.066, 0.956),
    "duplicate": (0.031, 0.981),
}


@pytest.fixture(scope="module")
def kang(test_data):
    path = test_data / "kang_ifnb.h5ad"
    if not path.is_file():
        pytest.skip("kang_ifnb.h5ad is not there")
    return ad.read_h5ad(path)


def test_kang_floors(kang):
    rules = (bl.MeanShift, bl.PerGeneRegression, bl.NearestType, bl.RidgeOnMeans)
    frames = []
    for kind in kang.obs["cell_type"].cat.categories:
        own, stimulated = kang.obs["cell_type"] == kind, kang.obs["condition"] == "stimulated"
        train, true, control = kang[~(own & stimulated)], kang[own & stimulated], kang[own & ~stimulated]
        predictions = {r.name: r().fit(train, **KEYS).predict(control, ["stimulated"]) for r in rules}
        for seed in range(5):
            frame = m.evaluate_predictions(
                predictions if seed == 0 else {},
                true,
                control,
                by=("intervention", "cell_type"),
                intervention_key="condition",
                metrics=["nmse_top", "pearson_change_top"],
                seed=seed,
            )
            frames.append(frame.assign(seed=seed))
    import pandas as pd

    table = m.summarise(pd.concat(frames), n_boot=10).pivot(index="method", columns="metric", values="mean")
    for method, (nmse, pearson) in FLOORS.items():
        found = table.loc[method]
        assert found["nmse_top"] == pytest.approx(nmse, rel=0.1), method
        assert found["pearson_change_top"] == pytest.approx(pearson, abs=0.012), method
    order = ["duplicate", "ridge on type means", "nearest type", "per-gene regression", "mean shift", "no change"]
    assert (np.diff(table.loc[order, "nmse_top"]) > 0).all()


def test_norman_floors(test_data):
    path = test_data / "norman_subset.h5ad"
    if not path.is_file():
        pytest.skip("norman_subset.h5ad is not there")
    cells = ad.read_h5ad(path)
    doubles = ["KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2"]
    held = cells.obs["perturbation"].isin(doubles).to_numpy()
    keys = {"intervention_key": "perturbation", "control": "control"}
    rules = (bl.Additive(), bl.MatchingMean())
    predictions = {r.name: r.fit(cells[~held], **keys).predict(interventions=doubles) for r in rules}
    control = cells[cells.obs["perturbation"] == "control"]
    frame = m.evaluate_predictions(
        predictions, cells[held], control, intervention_key="perturbation", metrics=["centroid_distance"]
    )
    found = frame.groupby("method")["value"].mean()
    for method, distance in {"no change": 1.38, "matching mean": 0.78, "additive": 0.51, "duplicate": 0.48}.items():
        assert found[method] == pytest.approx(distance, rel=0.15), method
