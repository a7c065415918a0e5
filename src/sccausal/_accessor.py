"""``adata.causal``: what the package does with cells, called on the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anndata import AnnData, register_anndata_namespace

if TYPE_CHECKING:
    import pandas as pd

    from sccausal.data import Split
    from sccausal.grn import CliprResult, Communities, Network


@register_anndata_namespace("causal")
class CausalNamespace:
    """Functions of this package as methods of an AnnData: ``adata.causal``.

    It is there once ``sccausal`` is imported. Each method hands the cells to the function
    named in its text, with the same arguments and results; nothing is kept beside what that function writes.

    Parameters
    ----------
    adata
        The cells, cells x genes.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(400, 60, 4, seed=0, sortability=False))
    >>> table = adata.causal.interventions("intervention", control="control")
    >>> list(table.columns)
    ['intervention', 'n_cells', 'n_targets', 'measured', 'own_change']
    >>> network = adata.causal.structure(intervention_key="intervention", control="control")
    """

    def __init__(self, adata: AnnData) -> None:
        self._adata = adata

    def __repr__(self) -> str:
        names = [name for name in dir(type(self)) if not name.startswith("_")]
        return f"adata.causal for {self._adata.n_obs} cells x {self._adata.n_vars} genes: {', '.join(names)}"

    def interventions(
        self, intervention_key: str, control: str, *, sep: str | None = "+", layer: str | None = None
    ) -> pd.DataFrame:
        """What was intervened on, in how many cells, and whether the target itself moved.

        Parameters
        ----------
        intervention_key
            Column of ``obs`` with labels such as ``"A"``, ``"A+B"`` and the control.
        control
            Label of control cells.
        sep
            String between the targets of a combination; ``None`` if a label is always one target.
        layer
            Layer with the expression; ``None`` takes ``X``.

        Returns
        -------
        DataFrame, the control first and then by number of cells: ``intervention``, ``n_cells``, ``n_targets``,
        ``measured`` (share of the targets that are genes of ``adata``) and ``own_change`` (mean expression of the
        measured targets in these cells minus that in control cells, in the unit of the matrix, mean over the targets;
        NaN where none is measured). A knock-out whose target does not fall, or an activation whose target does not
        rise, is a reason to doubt the guide.

        Raises
        ------
        sccausal._errors.SetupError
            The column is missing or incomplete, or the control is not in it.
        sccausal._errors.UnknownNameError
            There is no such layer.
        """
        from sccausal.data._interventions import InterventionCodec
        from sccausal.data._validation import check_obs_column

        labels = check_obs_column(self._adata, intervention_key, "intervention_key")
        return _own_changes(self._adata, InterventionCodec.fit(labels, control, sep), labels, layer)

    def encode_interventions(self, key: str, control: str, **kwargs: Any) -> AnnData | None:
        """Write interventions as a frame of doses; see :func:`sccausal.pp.encode_interventions`."""
        from sccausal import pp

        return pp.encode_interventions(self._adata, key, control, **kwargs)

    def select_genes(self, n_top: int = 2000, **kwargs: Any) -> AnnData | None:
        """Choose genes on training cells; see :func:`sccausal.pp.select_genes`."""
        from sccausal import pp

        return pp.select_genes(self._adata, n_top, **kwargs)

    def split(self, task: Any, **kwargs: Any) -> Split:
        """Hold out what is to be predicted; see :func:`sccausal.pp.split`."""
        from sccausal import pp

        return pp.split(self._adata, task, **kwargs)

    def grn(self, base: Any = None, **kwargs: Any) -> Network:
        """Gene network by regression on a base network; see :func:`sccausal.tl.grn`."""
        from sccausal import tl

        return tl.grn(self._adata, base, **kwargs)

    def structure(self, **kwargs: Any) -> Network:
        """Gene network of linear structural equations; see :func:`sccausal.tl.structure`."""
        from sccausal import tl

        return tl.structure(self._adata, **kwargs)

    def clipr(self, **kwargs: Any) -> CliprResult:
        """Direct effects of perturbations; see :func:`sccausal.tl.clipr`."""
        from sccausal import tl

        return tl.clipr(self._adata, **kwargs)

    def tf_communities(self, network: Network | None = None, **kwargs: Any) -> Communities:
        """Communities of transcription factors; see :func:`sccausal.tl.tf_communities`."""
        from sccausal import tl

        return tl.tf_communities(self._adata, network, **kwargs)

    def tf_activity(self, **kwargs: Any) -> Any:
        """Activities of communities in each cell; see :func:`sccausal.tl.tf_activity`."""
        from sccausal import tl

        return tl.tf_activity(self._adata, **kwargs)

    def compare(self, models: Any, **kwargs: Any) -> pd.DataFrame:
        """Score models and simple rules against these (held-out) cells; see :func:`sccausal.tl.compare`."""
        from sccausal import tl

        return tl.compare(models, self._adata, **kwargs)


def _own_changes(adata: AnnData, codec: Any, labels: Any, layer: str | None) -> pd.DataFrame:
    """Table of :meth:`CausalNamespace.interventions`."""
    import numpy as np
    import pandas as pd

    from sccausal._errors import unknown_name

    if layer is not None and layer not in adata.layers:
        raise unknown_name("layer", layer, list(adata.layers), "adata.layers")
    rows, code = codec.encode_levels(labels)
    # two spellings of one combination are one intervention
    names = np.asarray([codec.label(row) for row in rows], dtype=object)[code]
    genes = [t for t in codec.targets if t in adata.var_names]
    matrix = adata[:, genes].X if layer is None else adata[:, genes].layers[layer]
    values = np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=float)
    base = values[names == codec.control].mean(axis=0)
    table = []
    for name in sorted(set(names)):
        here = names == name
        targets = [codec.targets[j] for j in np.flatnonzero(codec.parse(name))]
        own = [genes.index(t) for t in targets if t in genes]
        change = float((values[here][:, own].mean(axis=0) - base[own]).mean()) if own else np.nan
        share = len(own) / len(targets) if targets else np.nan
        table.append((name, int(here.sum()), len(targets), share, change))
    frame = pd.DataFrame(table, columns=["intervention", "n_cells", "n_targets", "measured", "own_change"])
    first = frame["intervention"] != codec.control
    order = frame.assign(first=first).sort_values(["first", "n_cells", "intervention"], ascending=[True, False, True])
    return order.drop(columns="first").reset_index(drop=True)
