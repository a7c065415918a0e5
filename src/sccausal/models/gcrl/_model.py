"""GCRLVAE and DiscrepancyVAE on AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pandas as pd

from sccausal._errors import SetupError, unknown_name
from sccausal.models._base import CausalModel
from sccausal.models.gcrl._components import DecoderKind
from sccausal.models.gcrl._module import InterventionKind, Permutation
from sccausal.models.gcrl._outputs import Residual
from sccausal.models.gcrl._priors import Activities, read_prior
from sccausal.models.gcrl._vae import LatentSEMMixin
from sccausal.nn.discrepancy import DiscrepancyKind

if TYPE_CHECKING:
    from anndata import AnnData


class GCRLVAE(LatentSEMMixin, CausalModel):  # type: ignore[misc]
    r"""Causal latent variables that measure known activities, moved by interventions :cite:p:`gCRL2026`.

    A variational autoencoder with one latent per activity (of a community of transcription factors, a pathway, ...) and
    a global one. The latents obey structural equations :math:`u = uG + \epsilon` without cycles; an intervention shifts
    the exogenous part of few of them. It predicts cells under new combinations of interventions and says which
    activities each intervention moves.

    Parameters
    ----------
    adata
        Cells that :meth:`setup_anndata` has seen: log-normalised for ``gene_likelihood="gaussian"``, otherwise counts.
    registry
        Registry of a saved model, in place of ``adata``.
    activities
        What the latents are to measure: genes by set (communities, pathways), a Series gene -> set, the path of a GMT
        file, or a frame genes x activities of loadings. A target that belongs to one set acts on its latent, whether
        its gene is measured or not; all others find their latents in training.
    with_global
        Add the activity over all sets as a first latent, on which no intervention acts.
    min_genes, max_activities
        Sets with fewer measured genes are left out; the largest are kept.
    encoder_genes
        Genes the encoder sees, e.g. transcription factors: names, or a boolean column of ``adata.var``; default all.
    n_latent
        Number of latents; default one per activity. More are free: one per target often predicts better, and
        spreads interventions that act as one over several latents.
    n_hidden
        Width of the nets.
    decoder
        ``"mlp"`` (a linear map and a net) or ``"linear"``.
    gene_likelihood
        ``"gaussian"`` (variance learned per gene) or ``"nb"`` on counts.
    intervention
        ``"shift"``: interventions add to the exogenous part. ``"do"``: they also cut the edges into their latent, with
        which the graph can be learned.
    discrepancy
        How predicted and observed cells of a condition are compared in training: ``"centroid"``, ``"mmd"``,
        ``"energy"``.
    discrepancy_weight, alignment_weight
        Weights of this comparison (20 in the paper, on another scale), and of the partial correlation of latents and
        activities.
    permutation
        Which latent measures which activity: ``"hungarian"`` (assignment once per epoch), ``"sinkhorn"`` (learned, as
        in the paper) or ``"fixed"``.
    l1_on, l1_weight
        Sparsity of the ``"decoder"`` (paper) or of the ``"graph"``.
    n_interaction
        Rank of what pairs of interventions do beyond their sum. It starts at zero, and is trained where there are at
        least as many combinations as targets.
    residual
        What the latents leave of the mean changes seen in training is given to the genes directly: ``"shrunken"``
        (adaptive shrinkage by the sampling error), ``"exact"`` (all of it: the additive rule plus the latents'
        interaction), ``"none"`` (paper).
    start
        ``"statistics"``: from the linear model of the activities or of the mean changes; ``"random"`` (paper).
    loss_scale
        ``"gene"``: a proper likelihood, losses per cell and gene; ``"paper"``: squared errors and the paper's weights.

    Notes
    -----
    Pairs of a control and a treated cell are drawn anew in every epoch. Shift interventions identify the exogenous
    parts and the targets but not the graph, which :meth:`identifiability_report` says.

    See Also
    --------
    sccausal.models.DiscrepancyVAE : the same model without activities.
    sccausal.models.GCRLAE : alignment of an autoencoder, with its permutation test.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_latent_sem(200, n_genes=12, n_latent=3, seed=0)
    >>> scc.GCRLVAE.setup_anndata(adata, intervention_key="intervention", control="control")
    >>> model = scc.GCRLVAE(adata, activities={"first": adata.var_names[:4], "second": adata.var_names[4:8]})
    >>> model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)  # in earnest: model.train()
    >>> predicted = model.perturbation.predict(interventions=["T00+T01"])
    >>> model.get_activities().shape  # cells x activities, the global one included
    (200, 3)
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"perturbation"})
    representations: ClassVar[tuple[str, ...]] = ("latent", "exogenous", "activity")

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        activities: Activities | None = None,
        with_global: bool = True,
        min_genes: int = 2,
        max_activities: int | None = None,
        encoder_genes: Sequence[str] | str | None = None,
        n_latent: int | None = None,
        n_hidden: int = 128,
        decoder: DecoderKind = "mlp",
        gene_likelihood: Literal["gaussian", "nb"] = "gaussian",
        intervention: InterventionKind = "shift",
        discrepancy: DiscrepancyKind = "centroid",
        discrepancy_weight: float = 1.0,
        alignment_weight: float = 1.0,
        permutation: Permutation = "hungarian",
        l1_on: Literal["decoder", "graph"] = "decoder",
        l1_weight: float = 1e-3,
        n_interaction: int = 8,
        residual: Residual = "shrunken",
        start: Literal["statistics", "random"] = "statistics",
        loss_scale: Literal["gene", "paper"] = "gene",
    ) -> None:
        super().__init__(adata, registry)
        genes = self._genes()
        if activities is None:
            raise SetupError(
                "GCRLVAE needs `activities` (sets of genes, a GMT file or loadings). Without them use DiscrepancyVAE."
            )
        prior = read_prior(
            activities, genes, with_global=with_global, min_genes=min_genes, max_activities=max_activities
        )
        assert prior is not None
        # what is saved must not depend on a file or a column that may be gone
        encoder_genes = gene_names(encoder_genes, genes, self.adata)
        activities = prior.loadings if prior.loadings is not None else prior.sets
        options = {
            "encoder_genes": None if encoder_genes is None else pd.Index(genes).get_indexer(pd.Index(encoder_genes)),
            "n_hidden": n_hidden, "decoder": decoder, "gene_likelihood": gene_likelihood, "intervention": intervention,
            "discrepancy": discrepancy, "discrepancy_weight": discrepancy_weight,
            "alignment_weight": alignment_weight, "permutation": permutation, "l1_on": l1_on, "l1_weight": l1_weight,
            "n_interaction": n_interaction, "loss_scale": loss_scale,
        }  # fmt: skip
        self._build(prior, n_latent, residual, start, options)
        del options, prior, genes
        self.init_params_ = self._get_init_params(locals())

    def get_activities(self) -> pd.DataFrame:
        """Activities of the cells of the model (cells x activities), in standard deviations of the training cells."""
        values = self.get_latent_representation(representation="activity")
        return pd.DataFrame(values, index=self.adata.obs_names, columns=pd.Index(self._prior().names))


class DiscrepancyVAE(LatentSEMMixin, CausalModel):  # type: ignore[misc]
    r"""Causal latent variables found from interventions alone :cite:p:`Zhang2023dvae`.

    :class:`~sccausal.models.GCRLVAE` without activities: as many latents as targets by default. With ``n_latent`` set
    to the number of communities it is the informed variant (id-VAE) of :cite:p:`gCRL2026`.

    Parameters
    ----------
    adata, registry, encoder_genes, n_hidden, decoder, gene_likelihood, intervention, discrepancy, discrepancy_weight
        As in :class:`~sccausal.models.GCRLVAE`.
    n_latent
        Number of latents; default one per target.
    l1_on, l1_weight, n_interaction, residual, start, loss_scale
        As in :class:`~sccausal.models.GCRLVAE`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_latent_sem(400, n_genes=10, seed=0)
    >>> scc.DiscrepancyVAE.setup_anndata(adata, intervention_key="intervention", control="control")
    >>> model = scc.DiscrepancyVAE(adata)
    >>> model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)  # in earnest: model.train()
    >>> model.get_intervention_targets().shape
    (5, 6)
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"perturbation"})
    representations: ClassVar[tuple[str, ...]] = ("latent", "exogenous")

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        encoder_genes: Sequence[str] | str | None = None,
        n_latent: int | None = None,
        n_hidden: int = 128,
        decoder: DecoderKind = "mlp",
        gene_likelihood: Literal["gaussian", "nb"] = "gaussian",
        intervention: InterventionKind = "shift",
        discrepancy: DiscrepancyKind = "centroid",
        discrepancy_weight: float = 1.0,
        l1_on: Literal["decoder", "graph"] = "decoder",
        l1_weight: float = 1e-3,
        n_interaction: int = 8,
        residual: Residual = "shrunken",
        start: Literal["statistics", "random"] = "statistics",
        loss_scale: Literal["gene", "paper"] = "gene",
    ) -> None:
        super().__init__(adata, registry)
        genes = self._genes()
        encoder_genes = gene_names(encoder_genes, genes, self.adata)
        options = {
            "encoder_genes": None if encoder_genes is None else pd.Index(genes).get_indexer(pd.Index(encoder_genes)),
            "n_hidden": n_hidden, "decoder": decoder, "gene_likelihood": gene_likelihood, "intervention": intervention,
            "discrepancy": discrepancy, "discrepancy_weight": discrepancy_weight, "l1_on": l1_on,
            "l1_weight": l1_weight, "n_interaction": n_interaction, "loss_scale": loss_scale,
        }  # fmt: skip
        self._build(None, n_latent, residual, start, options)
        del options, genes
        self.init_params_ = self._get_init_params(locals())


def gene_names(chosen: Sequence[str] | str | None, genes: Sequence[str], adata: AnnData | None) -> list[str] | None:
    """Names of chosen genes: a list of names, or a boolean column of ``adata.var``.

    Raises
    ------
    sccausal._errors.UnknownNameError
        The column or a gene does not exist.
    sccausal._errors.SetupError
        The column is not boolean, or nothing is chosen.
    """
    if chosen is None:
        return None
    if isinstance(chosen, str):
        columns = [] if adata is None else list(map(str, adata.var.columns))
        if chosen not in columns:
            raise unknown_name("column", chosen, columns, "adata.var")
        mask = adata.var[chosen]  # type: ignore[union-attr]
        if mask.dtype != bool:
            raise SetupError(f"adata.var[{chosen!r}] holds {mask.dtype}; a boolean column is needed.")
        chosen = [g for g, keep in zip(genes, mask, strict=True) if keep]
    names = list(dict.fromkeys(str(g) for g in chosen))
    known = set(genes)
    missing = next((g for g in names if g not in known), None)
    if missing is not None:
        raise unknown_name("gene", missing, genes, "adata.var_names")
    if not names:
        raise SetupError("No gene is chosen for the encoder.")
    return names
