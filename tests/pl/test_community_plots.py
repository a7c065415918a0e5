from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from planted_modules import planted_modules

from sccausal import pl, tl
from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.grn import Communities, Network, cohesion_test

NAMES = ("communities", "community_stability", "cohesion", "edge_mixture")


@pytest.fixture(scope="module")
def cells() -> AnnData:
    planted = planted_modules(600, 3, 12, 60, p_in=0.4)
    tl.grn(planted.adata, planted.base)
    tl.tf_communities(planted.adata, n_runs=10, n_permutations=50, n_rewired=10)
    return planted.adata


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", NAMES)
def test_habits(name, cells, tmp_path):
    plot = getattr(pl, name)
    before = dict(matplotlib.rcParams)
    assert isinstance(plot(cells, show=False, title="t"), Axes)
    _, ax = plt.subplots()
    assert plot(cells, ax=ax) is ax
    assert plot(cells, show=True) is None
    assert isinstance(plot(cells, return_fig=True), Figure)
    plot(cells, show=False, save=tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(UnknownNameError):
        plot(AnnData(np.zeros((3, 2))), show=False)


def test_blocks_are_the_communities(cells):
    ax = pl.communities(cells, show=False)
    sizes = cells.var["tf_communities"].value_counts()
    boxes = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert [b.get_width() for b in boxes] == [sizes[n] for n in sorted(sizes.index)]
    shown = np.asarray(ax.images[0].get_array().filled(0))
    np.testing.assert_array_equal(shown, shown.T)


def test_observed_value_and_null(cells):
    ax = pl.cohesion(cells, test="rewired", show=False)
    held = cells.uns["tf_communities"]["cohesion"]["rewired"]
    assert ax.lines[0].get_xdata()[0] == held["observed"]
    assert sum(p.get_height() for p in ax.patches) == 10
    with pytest.raises(SetupError, match="shuffled"):
        pl.cohesion(cells, test="shuffled", show=False)


def test_objects_in_place_of_cells(cells):
    network = Network(pd.DataFrame({"source": list("abca"), "target": list("badc"), "weight": [1.0, 2, 1, 0.1]}))
    given = Communities.from_labels({"a": "x", "b": "x", "c": "y"}, network)
    assert isinstance(pl.communities(given, show=False), Axes)
    assert isinstance(pl.cohesion(cohesion_test(given, n_permutations=20), show=False), Axes)
    with pytest.raises(InputDataError, match="searched"):
        pl.community_stability(given, show=False)
    with pytest.raises(InputDataError, match="fraction"):
        pl.edge_mixture(network, show=False)
    with pytest.raises(SetupError, match="Network"):
        pl.communities(network, show=False)


def test_cut_is_drawn_where_it_is(cells):
    ax = pl.edge_mixture(cells, show=False)
    cut = cells.uns["grn"]["mixture"]["cut"]
    assert any(np.isclose(line.get_xdata()[0], np.log(cut)) for line in ax.lines if len(line.get_xdata()) == 2)
