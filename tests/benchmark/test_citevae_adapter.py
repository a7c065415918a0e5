from __future__ import annotations

import numpy as np

from sccausal.benchmark import get_task, methods
from sccausal.benchmark._task import Request


def cases(task, dataset, seed=0):
    found = get_task(task)
    source = found.dataset(dataset)
    return list(found.cases(source.load(Request(seed, True)), source, Request(seed, True)))


def test_it_beats_the_mean_of_the_time_where_the_intervention_was_never_seen():
    case = next(c for c in cases("time", "differentiation") if c.problem.case == "intervention never seen")
    known, task = methods("time"), get_task("time")
    error = {}
    for name in ("CITE-VAE", "time mean", "elastic net on embedding"):
        scored = task.score(case, known[name].answer(case))
        error[name] = scored[scored["metric"] == "rmse"]["value"].mean()
    assert error["CITE-VAE"] < 0.95 * min(error["time mean"], error["elastic net on embedding"])
    assert known["CITE-VAE, shuffled embedding"].kind == "negative"


def test_it_encodes_cells_it_has_not_seen():
    (case,) = cases("identify", "temporal_factors")
    known = methods("identify")
    assert known["CITE-VAE"].can(case.problem)
    z = known["CITE-VAE"].answer(case)
    assert z.shape == (case.problem.cells.n_obs, 11) and np.isfinite(z).all()
    table = get_task("identify").score(case, z).set_index("metric")
    assert table["value"]["r2_linear"] > table["chance"]["r2_linear"] + 0.5
    (other,) = cases("identify", "latent_sem")
    assert not known["CITE-VAE"].can(other.problem)
