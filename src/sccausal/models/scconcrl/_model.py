"""ScConCRL on AnnData."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from scvi import settings
from torch import Tensor

from sccausal._compat import state_registry
from sccausal._docs import docs
from sccausal._errors import SetupError
from sccausal.data import KEYS, check_matrix
from sccausal.models._base import CausalModel
from sccausal.models.scconcrl._assumptions import assumptions
from sccausal.models.scconcrl._components import GeneMap
from sccausal.models.scconcrl._module import ScConCRLModule
from sccausal.models.scconcrl._outputs import OutputsMixin, combine_graphs
from sccausal.models.scconcrl._regulators import regulator_names
from sccausal.models.scconcrl._statistics import training_statistics
from sccausal.nn.graph import AcyclicityKind
from sccausal.nn.likelihood import Likelihood, check_likelihood

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.models._identifiability import Check

logger = logging.getLogger(__name__)


class ScConCRL(OutputsMixin, CausalModel):  # type: ignore[misc]
    r"""Conditional causal representation learning over genes and domains :cite:p:`Dong2025`.

    A variational autoencoder whose latent genes obey a structural equation model,
    :math:`z = zA^{xx} + n^b A^{xb} + n^x` (rows are cells and sources): :math:`A^{xx}` is a gene network,
    :math:`n^b` holds what batch and condition do, :math:`n^x` what is left of a cell. One model integrates batches in
    expression space, predicts cells under conditions they were not measured in, and gives the network.

    Parameters
    ----------
    adata
        Cells that :meth:`setup_anndata` has seen: log-normalised for ``gene_likelihood="gaussian"``, otherwise counts.
    registry
        Registry of a saved model, in place of ``adata``.
    n_domain_latent
        Latents of the batch; default one less than there are batches, at most 16. More are free to hold biology.
    n_condition_latent
        Latents of the condition or interventions; default between 16 and 64, by the number of targets.
    n_hidden
        Width of the net that infers the domain latents, and of ``"dense"`` maps.
    n_state
        Dimension of the cell state on which a response may depend.
    gene_likelihood
        ``"gaussian"`` (variance learned per gene), ``"nb"`` or ``"zinb"``.
    encoder, decoder
        ``"affine"``: a line per gene and a small residual; ``"genewise"``: a small net per gene; ``"dense"``: all
        genes together, which leaves no gene network to read.
    residual_width
        Knots of the residual (``"affine"``) or hidden units per gene (``"genewise"``).
    dropout
        In the net that infers the domain latents.
    regulators
        Genes with outgoing edges: names, or a boolean column of ``adata.var``; default all. With 200 of 2000 the
        linear algebra of the graph costs about a hundredth.
    acyclicity
        ``"logdet"``, ``"expm"`` (paper), ``"polynomial"``, ``"spectral"``, or ``None`` where feedback loops are part of
        the question.
    sparsity
        ``"l1"`` by proximal steps, which gives zeros, or ``"frobenius"`` (paper).
    response
        ``"state"``: the effect of an intervention depends on the state of the cell, and predicted mean changes of
        populations are fitted to the observed ones. ``"paper"``: one prior per condition; tends to predict no change.
    batch_response
        ``"state"``: the offset of a batch depends on the state of the cell; it is measured between populations that are
        mutual nearest neighbours across batches, and held while the rest is trained. ``"paper"``: one prior per batch,
        learned by the ELBO, which leaves part of the batch in the cells.
    response_start
        ``"shrinkage"``: closed-form regression of the changes on the state of the populations, shrunken gene by gene;
        ``"mean"``: mean shift; ``"zero"``.
    graph_start
        ``"elastic_net"``: joint regression of all genes on the regulators, after batches and conditions were taken
        out, which training then refines; ``"ridge"`` or ``"random"``: training finds the graph itself.
    adversary
        ``"confusion"`` or ``"reversal"`` (paper).
    batch_adversary_weight, condition_adversary_weight
        Weights of the adversaries on :math:`n^x`; 0 leaves one out. Against the condition it hinders prediction.
    guide_weight
        Weight of the regression of expression on its regulators (the paper's L_u); 0 leaves it out.
    guide_input
        ``"centred"`` on batches and interventions, or ``"raw"`` (paper), which learns batch effects as edges.
    sparsity_weight
        Strength of the sparsity: with ``"l1"``, the share of an optimiser step by which weights shrink.
    population_weight
        Weight of the error in mean changes of populations; 0 leaves it out.
    response_decay
        Pull of the response to its start.
    loss_scale
        ``"gene"``: losses per cell and gene; ``"paper"``: sums over genes.
    structure_every
        Steps between two evaluations of the terms that factorise the graph; default 1 up to 128 regulators, then more.

    align_queries
        Take all cells that are passed later as one batch the model has not seen: for models trained on a single batch.
        With ``batch_key``, batches that were not in training are recognised and aligned without it.

    Notes
    -----
    Strata of the population loss are ``labels_key`` x ``batch_key``; without labels cells are clustered. The
    combination of several targets is the sum of their effects until combinations in training teach otherwise.

    See Also
    --------
    sccausal.tl.structure : the same network without the autoencoder.
    sccausal.tl.key_genes : genes through which a condition acts.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(200, 30, 3, n_types=2, condition=True, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> scc.ScConCRL.setup_anndata(adata, labels_key="cell_type", condition_key="condition", control="control")
    >>> model = scc.ScConCRL(adata)
    >>> model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)  # in earnest: model.train()
    >>> predicted = model.perturbation.predict(interventions=["stimulated"])
    >>> network = model.grn.network(top=1000)
    >>> predicted.shape[1], network.genes == list(adata.var_names)
    (30, True)
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"perturbation", "grn"})
    representations: ClassVar[tuple[str, ...]] = ("nx", "z", "nb", "state", "integrated")
    _accepts_new_batches: ClassVar[bool] = True
    _module_cls = ScConCRLModule

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_domain_latent: int | None = None,
        n_condition_latent: int | None = None,
        n_hidden: int = 128,
        n_state: int = 20,
        gene_likelihood: Likelihood = "gaussian",
        encoder: GeneMap = "affine",
        decoder: GeneMap = "affine",
        residual_width: int = 2,
        dropout: float = 0.1,
        regulators: Sequence[str] | str | None = None,
        acyclicity: AcyclicityKind | None = None,
        sparsity: Literal["l1", "frobenius"] = "l1",
        response: Literal["state", "paper"] = "state",
        batch_response: Literal["state", "paper"] = "state",
        response_start: Literal["shrinkage", "mean", "zero"] = "shrinkage",
        graph_start: Literal["elastic_net", "ridge", "random"] = "elastic_net",
        adversary: Literal["confusion", "reversal"] = "confusion",
        batch_adversary_weight: float = 0.2,
        condition_adversary_weight: float = 0.0,
        guide_weight: float = 0.1,
        guide_input: Literal["centred", "raw"] = "centred",
        sparsity_weight: float = 0.05,
        population_weight: float = 1.0,
        response_decay: float = 1.0,
        loss_scale: Literal["gene", "paper"] = "gene",
        structure_every: int | None = None,
        align_queries: bool = False,
    ) -> None:
        super().__init__(adata, registry)
        genes = [str(g) for g in self.get_var_names()] if adata is not None else self._registry_genes()
        self.response_start_, self.graph_start_ = response_start, graph_start
        self.align_queries_ = bool(align_queries)
        self.ensemble_: dict[str, Any] | None = None
        check_likelihood(gene_likelihood)
        if gene_likelihood != "gaussian" and adata is not None:
            check_matrix(self.adata, self.registry_["setup_args"].get("layer"), True)
        stats = self.summary_stats
        self.regulators_ = regulators = regulator_names(regulators, genes, self.adata)
        index = None if self.regulators_ is None else pd.Index(genes).get_indexer(pd.Index(self.regulators_))
        n_targets = int(stats.get(f"n_{KEYS.INTERVENTION}", 0))
        self.module = self._module_cls(
            n_genes=stats.n_vars,
            n_batch=int(stats.get("n_batch", 1)),
            n_targets=n_targets,
            n_domain_latent=n_domain_latent,
            n_condition_latent=n_condition_latent,
            n_hidden=n_hidden,
            n_state=n_state,
            gene_likelihood=gene_likelihood,
            encoder=encoder,
            decoder=decoder,
            residual_width=residual_width,
            dropout=dropout,
            regulators=index,
            acyclicity=acyclicity,
            sparsity=sparsity,
            response=response,
            batch_response=batch_response,
            adversary=adversary,
            batch_adversary_weight=batch_adversary_weight,
            condition_adversary_weight=condition_adversary_weight,
            guide_weight=guide_weight,
            guide_input=guide_input,
            sparsity_weight=sparsity_weight,
            population_weight=population_weight,
            response_decay=response_decay,
            loss_scale=loss_scale,
            structure_every=structure_every,
        )
        self.query_arguments_ = {"n_domain_latent": self.module.n_batch_latent or None}
        self._model_summary_string = (
            f"ScConCRL: {stats.n_vars} genes, {self.module.graph.n_regulators} regulators, "
            f"{self.module.n_batch} batch(es), {n_targets} target(s), {gene_likelihood} likelihood, "
            f"response: {response}"
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    @docs.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        condition_key: str | None = None,
        intervention_key: str | None = None,
        control: str | None = None,
        sep: str | None = "+",
        **kwargs: Any,
    ) -> None:
        """Register the cells.

        Parameters
        ----------
        %(setup_adata)s
        %(layer)s
        %(batch_key)s
        %(labels_key)s Used as strata of the population loss; without it strata are clustered.
        %(condition_key)s Exactly one of ``condition_key`` and ``intervention_key`` names what is predicted.
        %(intervention_key)s
        %(control)s
        %(sep)s
        **kwargs
            scvi-tools' options for new cells of a registered model.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        use_domain = condition_key is not None or intervention_key is not None
        cls._register(
            adata,
            setup_method_args,
            uses={"batch", "labels", "condition", "intervention"},
            is_count_data=False,
            condition_as_intervention=use_domain,
            **kwargs,
        )

    # ------------------------------------------------------------------ construction

    def _registry_genes(self) -> list[str]:
        state = state_registry(self.registry_, KEYS.X)
        return [str(g) for g in state["column_names"]]

    # ------------------------------------------------------------------ training

    def _make_data(self, split: list[np.ndarray] | None, *args: Any) -> pl.LightningDataModule:
        data = super()._make_data(split, *args)
        if split is None:
            # the statistics below must come from the very cells that are trained on
            data.setup("fit")
            parts = [np.asarray(getattr(data, n)) for n in ("train_idx", "val_idx", "test_idx")]
            data = super()._make_data(parts, *args)
            rows = parts[0]
        else:
            rows = split[0]
        self._start_module(np.sort(rows))
        return data

    def _start_module(self, rows: np.ndarray) -> None:
        manager = self.adata_manager
        X = manager.get_from_registry(KEYS.X)
        batch = np.asarray(manager.get_from_registry(KEYS.BATCH)).ravel().astype(int)[rows]
        dose = np.zeros((len(rows), 0))
        if self.module.n_targets:
            dose = np.asarray(manager.get_from_registry(KEYS.INTERVENTION), dtype=float)[rows]
        labels = None
        if self.summary_stats.get("n_labels", 1) > 1:
            labels = np.asarray(manager.get_from_registry(KEYS.LABELS)).ravel().astype(int)[rows]
        statistics = training_statistics(
            X[rows],
            batch,
            dose,
            labels,
            n_batch=self.module.n_batch,
            n_state=self.module.n_state,
            log_counts=self.module.gene_likelihood != "gaussian",
            by_state=self.module.batch_response == "state",
            seed=settings.seed or 0,
        )
        if self.module.n_targets and statistics.populations is None:
            warnings.warn(
                "No population has 5 control cells and 5 cells under an intervention, so the population loss is off "
                "and the response is learned from single cells only.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        elif statistics.unmatched:
            logger.info("%d population(s) without enough control cells are left out.", len(statistics.unmatched))
        self.module.start(statistics, response_start=self.response_start_, graph_start=self.graph_start_)

    def train(  # type: ignore[override]
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = 0.9,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 128,
        early_stopping: bool = False,
        external_indexing: Any = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        n_runs: int = 1,
        **kwargs: Any,
    ) -> None:
        """Train the model.

        Parameters
        ----------
        max_epochs
            Passes through the training cells; default: about 600 updates, between 10 and 150 epochs.
        accelerator, devices, train_size, validation_size, shuffle_set_split, batch_size, early_stopping
            As in every model; see :meth:`sccausal.models.CausalModel.train`.
        external_indexing
            Rows of the training, validation and test cells, or a :class:`~sccausal.data.Split`.
        plan_kwargs
            Arguments of :class:`sccausal.train.CausalTrainingPlan`.
        n_runs
            Train ``n_runs - 1`` more models from other seeds, and let ``model.grn`` answer with the average of
            ``|A|`` and the share of runs that hold each edge. All else comes from the first run.
        **kwargs
            Further arguments of :meth:`sccausal.models.CausalModel.train`.
        """
        if max_epochs is None:
            updates = max(1, self.adata.n_obs // batch_size)
            max_epochs = int(np.clip(600 // updates, 10, 150))
        same = {
            "accelerator": accelerator, "devices": devices, "train_size": train_size,
            "validation_size": validation_size, "shuffle_set_split": shuffle_set_split, "batch_size": batch_size,
            "early_stopping": early_stopping, "external_indexing": external_indexing, "plan_kwargs": plan_kwargs,
            **kwargs,
        }  # fmt: skip
        super().train(max_epochs, **same)
        self.module.refresh()
        if n_runs > 1:
            self._train_ensemble(n_runs, max_epochs, same)
        if self.module.n_targets:
            self._warn_if_no_change()

    def _train_ensemble(self, n_runs: int, max_epochs: int, kwargs: dict[str, Any]) -> None:
        before = settings.seed
        graphs = [self.module.standardised_graph()]
        try:
            for run in range(1, n_runs):
                settings.seed = (before or 0) + 7919 * run
                twin = type(self)(self.adata, **self.init_params_["non_kwargs"])
                twin.train(max_epochs, **kwargs)
                graphs.append(twin.module.standardised_graph())
        finally:
            settings.seed = before
        self.ensemble_ = combine_graphs(graphs)

    def _warn_if_no_change(self) -> None:
        rows = self.module.populations
        if rows is None:
            return
        with torch.inference_mode():
            predicted = self.module.predicted_change(rows.control, rows.dose, rows.state)
            share = float(predicted.square().sum() / rows.change.square().sum().clamp_min(1e-12))
        if share < 0.05:
            warnings.warn(
                f"The model predicts almost no change: {share:.1%} of the squared change seen in the training cells. "
                "Predictions of interventions will look like control cells. Use response='state' with a positive "
                "population_weight, and check that the interventions have an effect at all.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )

    # ------------------------------------------------------------------ hooks of the base

    @property
    def prediction_units(self) -> str:
        """``"counts"`` for count likelihoods, otherwise the unit of the data (``"as_given"``)."""
        return "as_given" if self.module.gene_likelihood == "gaussian" else "counts"

    def _encode(self, tensors: dict[str, Tensor], representation: str) -> Tensor:
        out = self.module.inference(**self.module._get_inference_input(tensors))
        if representation == "integrated":
            return self._coordinates(out, tensors)
        return {"nx": out["nx"], "z": out["h"], "nb": out["nb_mean"], "state": out["state"]}[representation]

    def _assumptions(self) -> list[Check]:
        if self.adata is None:
            raise SetupError("The report needs cells; load the model with `adata`.")
        return assumptions(self)
