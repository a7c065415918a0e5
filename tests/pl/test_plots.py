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
from matplotlib.patches import FancyArrowPatch

from sccausal import pl
from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.grn import Network
from sccausal.pl._base import BLUE, VERMILION, _spread


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def edges() -> pd.DataFrame:
    return pd.DataFrame(
        {"source": ["A", "A", "B", "D", "A"], "target": ["B", "C", "C", "E", "A"], "weight": [2.0, -1.0, 0.5, 0.1, 9.0]}
    )


def cells(shift: np.ndarray, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    X = rng.gamma(2.0, 0.5, (40, len(shift))) + shift
    return AnnData(X.astype(np.float32), var=pd.DataFrame(index=[f"g{i}" for i in range(len(shift))]))


def history() -> dict[str, pd.DataFrame]:
    values = {
        "elbo_train": [3.0, 2.0, 1.0],
        "elbo_validation": [3.5, 2.5, 1.5],
        "constraint": [1.0, 0.1, 0.01],
        "kl_weight": [0, 0.5, 1],
        "train_loss_step": [1.0, 1.0, 1.0],
    }
    return {k: pd.DataFrame({k: v}) for k, v in values.items()}


def table() -> pd.DataFrame:
    rows = [
        ("worse", "pearson", 0.2, "higher"), ("better", "pearson", 0.9, "higher"), ("middle", "pearson", 0.5, "higher"),
        ("worse", "mse", 0.9, "lower"), ("better", "mse", 0.1, "lower"), ("middle", "mse", 0.4, "lower"),
        ("worse", "variance", 0.2, "one"), ("better", "variance", 1.1, "one"), ("middle", "variance", 1.5, "one"),
        ("duplicate", "pearson", 0.99, "higher"), ("worse", "n_de", 7, "none"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "metric", "value", "direction"])


PLOTS = {
    "grn": lambda **kw: pl.grn(edges(), **kw),
    "history": lambda **kw: pl.history(history(), keys=["elbo"], **kw),
    "compare": lambda **kw: pl.compare(table(), **kw),
    "response": lambda **kw: pl.response(
        cells(np.linspace(0, 2, 30)), cells(np.linspace(0, 2, 30), 1), cells(np.zeros(30), 2), **kw
    ),
}


@pytest.mark.parametrize("name", PLOTS)
class TestHabits:
    def test_show_false_returns_axes(self, name):
        assert isinstance(PLOTS[name](show=False), Axes)

    def test_given_axes_are_used_and_not_shown(self, name):
        _, ax = plt.subplots()
        assert PLOTS[name](ax=ax) is ax

    def test_show_true_returns_nothing(self, name):
        assert PLOTS[name](show=True) is None

    def test_return_fig(self, name):
        assert isinstance(PLOTS[name](return_fig=True), Figure)

    def test_save(self, name, tmp_path):
        PLOTS[name](show=False, save=tmp_path / "sub" / "x.png")
        assert (tmp_path / "sub" / "x.png").stat().st_size > 1000

    def test_no_global_setting_is_touched(self, name):
        before = dict(matplotlib.rcParams)
        PLOTS[name](show=False)
        assert dict(matplotlib.rcParams) == before


class TestGrn:
    @staticmethod
    def arrows(ax: Axes) -> list[FancyArrowPatch]:
        return [p for p in ax.patches if isinstance(p, FancyArrowPatch)]

    def test_draws_the_strongest_edges_without_self_loops(self):
        arrows = self.arrows(pl.grn(edges(), top=2, show=False))
        assert len(arrows) == 2
        colours = {matplotlib.colors.to_hex(a.get_edgecolor()).upper() for a in arrows}
        assert colours == {BLUE, VERMILION}

    def test_genes_restrict_to_their_edges(self):
        ax = pl.grn(edges(), genes=["B"], show=False)
        assert len(self.arrows(ax)) == 2
        assert {t.get_text() for t in ax.texts} == {"A", "B", "C"}

    def test_edges_outside_the_truth_are_dashed(self):
        network = Network(edges().iloc[:4])
        truth = pd.DataFrame({"source": ["A"], "target": ["B"]})
        styles = [a.get_linestyle() for a in self.arrows(pl.grn(network, truth=truth, show=False))]
        assert sum(s == "-" for s in styles) == 1
        assert len(styles) == 4

    @pytest.mark.parametrize("layout", ["spring", "kamada-kawai", "circular"])
    def test_layout_is_repeatable(self, layout):
        first, second = (pl.grn(edges(), layout=layout, show=False).collections[0].get_offsets() for _ in range(2))
        np.testing.assert_allclose(first, second)
        assert len(np.unique(np.round(first, 6), axis=0)) == 5

    def test_nothing_to_draw(self):
        with pytest.raises(InputDataError, match="no edge"):
            pl.grn(edges(), genes=["unknown"], show=False)

    def test_bad_table_and_layout(self):
        with pytest.raises(SetupError, match="target"):
            pl.grn(pd.DataFrame({"source": ["A"], "weight": [1.0]}), show=False)
        with pytest.raises(SetupError, match="layout"):
            pl.grn(edges(), layout="nice", show=False)


class TestHistory:
    def test_panels_leave_out_schedules_and_steps(self):
        axes = pl.history(history(), show=False)
        assert [a.get_title() for a in axes] == ["elbo", "constraint"]
        assert len(axes[0].lines) == 2
        assert axes[1].get_yscale() == "log"

    def test_errors(self):
        with pytest.raises(SetupError, match="train"):
            pl.history({}, show=False)
        with pytest.raises(UnknownNameError, match="elbo"):
            pl.history(history(), keys=["ebo"], show=False)
        _, ax = plt.subplots()
        with pytest.raises(SetupError, match="One `ax`"):
            pl.history(history(), keys=["elbo", "constraint"], ax=ax)


class TestCompare:
    def test_order_best_first_ceiling_last(self):
        ax = pl.compare(table(), show=False)
        assert [t.get_text() for t in ax.get_yticklabels()] == ["better", "middle", "worse", "duplicate"]

    def test_metrics_without_direction_are_left_out(self):
        ax = pl.compare(table(), show=False)
        assert [t.get_text() for t in ax.get_xticklabels()] == ["pearson ↑", "mse ↓", "variance →1"]

    def test_best_value_is_bold(self):
        ax = pl.compare(table(), show=False)
        assert [t.get_text() for t in ax.texts if t.get_weight() == "bold"] == ["0.9", "0.1", "1.1"]

    def test_errors(self):
        with pytest.raises(SetupError, match="direction"):
            pl.compare(table().drop(columns="direction"), show=False)
        with pytest.raises(UnknownNameError, match="pearson"):
            pl.compare(table(), metrics=["pearsn"], show=False)


class TestResponse:
    def test_summary_is_that_of_the_top_genes(self):
        shift = np.concatenate([np.zeros(50), np.linspace(1, 3, 10)])
        control = cells(np.zeros(60))
        ax = pl.response(cells(0.5 * shift), cells(shift), control, top=10, n_labels=3, show=False)
        text = ax.texts[-1].get_text()
        assert "top 10 genes" in text
        assert "r = 1.00" in text
        assert "slope = 0.50" in text
        assert {t.get_text() for t in ax.texts[:3]} == {"g59", "g58", "g57"}

    def test_genes_are_matched_by_name(self):
        shift = np.linspace(0, 2, 30)
        true, control = cells(shift), cells(np.zeros(30))
        turned = cells(shift)[:, ::-1].copy()
        assert "r = 1.00" in pl.response(turned, true, control, show=False).texts[-1].get_text()

    def test_no_change_has_no_correlation(self):
        control = cells(np.zeros(30))
        ax = pl.response(control, cells(np.linspace(0, 2, 30)), control, show=False)
        assert "r = not defined" in ax.texts[-1].get_text()

    def test_errors(self):
        control = cells(np.zeros(30))
        other = control.copy()
        other.var_names = [f"x{i}" for i in range(30)]
        with pytest.raises(SetupError, match="var_names"):
            pl.response(other, control, control, show=False)
        counts = AnnData(np.full((5, 30), 40, dtype=np.float32), var=control.var)
        with pytest.raises(InputDataError, match="counts"):
            pl.response(control, counts, control, show=False)


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_spread_and_stay_inside(seed):
    values = np.sort(np.random.default_rng(seed).normal(size=8))
    out = _spread(values, 0.2, -3, 3)
    assert np.diff(out).min() >= 0.2 - 1e-9
    assert out.min() >= -3 and out.max() <= 3
    far = np.arange(5.0)
    np.testing.assert_allclose(_spread(far, 0.2, -1, 6), far)
