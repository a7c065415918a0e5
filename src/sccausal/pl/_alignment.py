"""How latents and activities go together, and whether better than chance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sccausal._docs import docs
from sccausal._errors import NotSupportedError
from sccausal.pl._base import BLUE, GREEN, GREY, ORANGE, SMALL, VERMILION, finish, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"autoencoder": VERMILION, "PCA": BLUE, "random projection": GREEN}


@docs.dedent
def alignment(
    model: Any,
    *,
    title: str | None = None,
    axes: list[Axes] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Correlations of activities and latents, aligned and (for an autoencoder) before.

    The largest correlation of each row has a frame: after a good alignment frames stand on the diagonal.

    Parameters
    ----------
    model
        A trained :class:`~sccausal.models.GCRLAE` or :class:`~sccausal.models.GCRLVAE` with its cells.
    title
        Title of the figure.
    axes
        Two axes to draw on (one for a :class:`~sccausal.models.GCRLVAE`).
    show, save, return_fig
        As in scanpy: show the figure, write it to a file, return it.

    Returns
    -------
    %(plot_returns)s

    Raises
    ------
    sccausal._errors.NotSupportedError
        The model has no activities.

    Examples
    --------
    >>> import sccausal as scc
    >>> axes = scc.pl.alignment(model, show=False)
    >>> len(axes)
    2
    """
    import matplotlib.pyplot as plt

    panels, names = _correlations(model)
    given = axes is not None
    if axes is None:
        size = 0.28 * len(names) + 1.4
        figure, made = plt.subplots(
            1, len(panels), figsize=(size * len(panels) + 0.6, size), layout="constrained", squeeze=False
        )
        axes = list(made[0])
        if title:
            figure.suptitle(title, fontsize=8.5)
    image = None
    for ax, (label, values, columns) in zip(axes, panels, strict=False):
        image = ax.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="equal")
        ax.set_xticks(range(values.shape[1]), columns, rotation=90, fontsize=SMALL)
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names), fontsize=SMALL)
        for i, j in enumerate(np.abs(values).argmax(axis=1)):
            ax.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, lw=1.2, ec="#222222"))
        ax.set_title(label, fontsize=SMALL)
    first = axes[0]
    first.set_ylabel("activity", fontsize=SMALL)
    bar = first.get_figure().colorbar(image, ax=axes, shrink=0.7)
    bar.set_label("correlation", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return finish(axes, given=given, show=show, save=save, return_fig=return_fig)


def _correlations(model: Any) -> tuple[list[tuple[str, np.ndarray, list[str]]], list[str]]:
    if not getattr(model, "prior_", None):
        raise NotSupportedError(
            f"This {type(model).__name__} has no activities. Models that do: GCRLAE, GCRLVAE (`activities=`)."
        )
    names = list(model.prior_["names"])
    activity = model.get_latent_representation(representation="activity")

    def against(kind: str) -> np.ndarray:
        z = model.get_latent_representation(representation=kind)
        return np.corrcoef(activity.T, z.T)[: len(names), len(names) :]

    if "aligned" in model.representations:
        before = against("latent")
        raw = [str(i) for i in range(before.shape[1])]
        return [("aligned latents", against("aligned"), names), ("latents before", before, raw)], names
    order = [model.latent_names.index(n) for n in names]
    rest = [j for j in range(model.module.n_latent) if j not in order]
    columns = [model.latent_names[j] for j in order + rest]
    return [("latents", against("latent")[:, order + rest], columns)], names


@docs.dedent
def tmex_null(
    test: Any,
    *,
    bins: int = 30,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Scores of permuted communities, and the observed score as a line, for each latent space.

    Parameters
    ----------
    test
        What :meth:`sccausal.models.GCRLAE.permutation_test` returns.
    bins
        Bins of the histograms.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Examples
    --------
    >>> import sccausal as scc
    >>> ax = scc.pl.tmex_null(model.permutation_test(n_permutations=99), show=False)
    """
    from sccausal.pl._base import new_axes

    made = new_axes(ax, (4.2, 2.8))
    every = np.concatenate([np.append(t.null, t.observed) for t in test.tests.values()])
    edges = np.linspace(every.min(), every.max() + 1e-9, bins + 1)
    for name, t in test.tests.items():
        colour = _COLOURS.get(name, ORANGE)
        made.hist(t.null, bins=edges, color=colour, alpha=0.45, label=f"{name}, permuted")
        made.axvline(t.observed, color=colour, lw=1.6, label=f"{name}, p = {t.pvalue:.2g}")
    made.legend(
        fontsize=SMALL - 1, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=len(test.tests)
    )
    tidy(made, title=title, xlabel="T-MEX score (mean partial correlation)", ylabel="permutations")
    made.grid(False)
    made.tick_params(color=GREY)
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)
