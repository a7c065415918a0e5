"""CITE-VAE on AnnData: set-up, construction and training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from scvi import settings

from sccausal._compat import state_registry
from sccausal._docs import docs
from sccausal._errors import SetupError
from sccausal.data import KEYS, PairedDataSplitter, check_matrix
from sccausal.models._base import CausalModel
from sccausal.models.citevae._assumptions import assumptions
from sccausal.models.citevae._calibration import CalibrationMixin
from sccausal.models.citevae._design import check_design, check_times
from sccausal.models.citevae._embedding import read_embedding, standard_columns
from sccausal.models.citevae._module import Alignment, CITEVAEModule, Coupling
from sccausal.models.citevae._outputs import LatentOutputsMixin
from sccausal.models.citevae._plan import DecayingPlan
from sccausal.models.citevae._predictions import TimePredictionMixin
from sccausal.models.citevae._start import gene_loadings, training_start
from sccausal.nn.dynamics import LaggedGraph
from sccausal.nn.likelihood import Likelihood

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.models._identifiability import Check

_COLLAPSED = 0.05
_UPDATES = 3000


class CITEVAE(TimePredictionMixin, CalibrationMixin, LatentOutputsMixin, CausalModel):
    r"""Invariant and responsive latent dynamics of cells perturbed and followed over time :cite:p:`CITEVAE2026`.

    A variational autoencoder whose latents fall into a block c that no intervention moves and a block s that responds.
    Both move in time by lagged dynamics with additive noise; gates say which latent acts on which responsive one a step
    later. It predicts cells under interventions at times that were not measured, also under interventions that were
    never seen, through features of their targets.

    Parameters
    ----------
    adata
        Cells that :meth:`setup_anndata` has seen: log-normalised for ``gene_likelihood="gaussian"``, otherwise counts.
    registry
        Registry of a saved model, in place of ``adata``.
    n_invariant
        Dimension of c.
    n_responsive
        Dimension of s; default as many as the environments can identify, ``(environments - 1) // 2``, at most 8.
    n_hidden
        Width of the nets.
    gene_likelihood
        ``"gaussian"`` (variance learned per gene), ``"nb"`` or ``"zinb"`` on counts.
    intervention_embedding
        Features of the targets: ``"coexpression"`` (loadings of the target's own gene on principal components of the
        training control cells), ``"onehot"`` (no unseen targets), a DataFrame targets x features (GO, ESM, ...), or the
        name of one in ``adata.uns``. Features of a combination are the sum over its targets.
    n_embedding
        Features of ``"coexpression"``.
    pairing
        How cells of adjacent times are paired within an intervention: ``"independent"`` (at random, as in the paper),
        ``"ot"`` and ``"ot-invariant"`` (entropic optimal transport within a mini-batch, over all latents or over c
        alone), ``"tracked"`` (the same cell, named by ``track_key``).
    alignment
        How c is kept from telling the intervention: ``"mmd"`` or ``"energy"`` (the distribution of each intervention
        against all other cells of the time), ``"paired"`` (squared distance of random pairs, the form of the paper), or
        ``"none"``.
    alignment_weight
        Weight of the alignment beside a likelihood per gene.
    release_weight
        Weight, beside a likelihood per gene, of the independence of each responsive latent from c under the
        interventions that act on it, which take its parents away; 0 leaves it out.
    gate_weight
        Weight of the L1 norm of the gates into s, beside the likelihood of a cell.
    lagged_graph
        ``"full"``: every latent may act on every responsive one, each persists at its own rate. ``"triangular"``: only
        earlier coordinates act on later ones and none persists, as in the paper.
    invariant_kl
        Factor on the Kullback-Leibler divergence of c.
    free_bits
        Divergence per latent below which it costs nothing.
    dynamics_weight
        Weight of the transition prior against a prior without time; 0 switches the dynamics off.
    start
        ``"statistics"``: linear axes of single responsive latents, read off what interventions move first, and
        principal axes of the rest; ``"random"``.

    Notes
    -----
    Mean effects are predicted by regression on the features and by a linear dynamics of effects, both learned from the
    training interventions with leave-one-out control, so that a prediction contains the simple rules; the latents
    follow single cells through time. See the page of the model for what is identifiable.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_time_course(20, n_genes=30, n_targets=4, times=(1, 2, 4), seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> scc.CITEVAE.setup_anndata(adata, intervention_key="intervention", control="control", time_key="time")
    >>> model = scc.CITEVAE(adata)
    >>> model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)  # in earnest: model.train()
    >>> target = model.perturbation.targets[0]
    >>> predicted = model.perturbation.predict(interventions=[target], times=[2, 3, 6])
    >>> predicted.obs["time_support"].unique().tolist()
    ['measured', 'between', 'beyond']
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"perturbation", "grn"})
    representations: ClassVar[tuple[str, ...]] = ("latent", "invariant", "responsive")
    _data_splitter_cls = PairedDataSplitter
    _training_plan_cls = DecayingPlan
    _module_cls = CITEVAEModule

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_invariant: int = 8,
        n_responsive: int | None = None,
        n_hidden: int = 128,
        gene_likelihood: Likelihood = "gaussian",
        intervention_embedding: str | pd.DataFrame = "coexpression",
        n_embedding: int = 16,
        pairing: Coupling = "independent",
        alignment: Alignment = "mmd",
        alignment_weight: float = 3.0,
        release_weight: float = 0.3,
        gate_weight: float = 2e-3,
        lagged_graph: LaggedGraph = "full",
        invariant_kl: float = 0.5,
        free_bits: float = 0.0,
        dynamics_weight: float = 1.0,
        start: Literal["statistics", "random"] = "statistics",
    ) -> None:
        super().__init__(adata, registry)
        if start not in ("statistics", "random"):
            raise SetupError(f"Unknown start {start!r}; use 'statistics' or 'random'.")
        if n_invariant < 1 or (n_responsive is not None and n_responsive < 1):
            raise SetupError(f"Both blocks need a dimension; got n_invariant={n_invariant}, {n_responsive=}.")
        if not 0 <= dynamics_weight <= 1:
            raise SetupError(f"dynamics_weight must be between 0 and 1, got {dynamics_weight}.")
        if gene_likelihood != "gaussian" and self.adata is not None:
            check_matrix(self.adata, self.registry_["setup_args"].get("layer"), True)
        targets = list(self.codec.targets) if self._has_interventions else []
        intervention_embedding = read_embedding(intervention_embedding, targets, self.adata)
        n_responsive = self._n_responsive(n_responsive)
        embedding = intervention_embedding
        if isinstance(embedding, str):
            sizes = {"onehot": len(targets), "coexpression": min(n_embedding, int(self.summary_stats.n_vars))}
            n_features, kind = sizes[embedding], embedding
        else:
            n_features, kind = embedding.shape[1], "given"
        self.module = self._module_cls(
            int(self.summary_stats.n_vars), int(self.summary_stats.get("n_batch", 1)), len(targets),
            n_features,
            n_invariant=n_invariant, n_responsive=n_responsive, n_hidden=n_hidden, gene_likelihood=gene_likelihood,
            lagged_graph=lagged_graph, pairing=pairing, alignment=alignment if targets else "none",
            alignment_weight=alignment_weight, release_weight=release_weight, gate_weight=gate_weight,
            invariant_kl=invariant_kl, free_bits=free_bits, dynamics_weight=dynamics_weight,
        )  # fmt: skip
        self.embedding_kind_ = kind
        self.start_ = start
        self.table_ = {}
        self.response_report_ = {}
        if not isinstance(embedding, str):
            self.module.embedding.copy_(torch.as_tensor(standard_columns(embedding.to_numpy(float))))
        elif embedding == "onehot":
            self.module.embedding.copy_(torch.eye(len(targets)))
        self._model_summary_string = (
            f"CITEVAE: {self.summary_stats.n_vars} genes, {n_invariant} invariant and {n_responsive} responsive "
            f"latents, {len(targets)} target(s), {kind} embedding, {pairing} pairs, {alignment} alignment"
        )
        del targets, n_features, kind, embedding
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    @docs.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        intervention_key: str | None = None,
        control: str | None = None,
        time_key: str | None = None,
        sep: str | None = "+",
        track_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register the cells.

        Parameters
        ----------
        %(setup_adata)s
        %(layer)s
        %(batch_key)s
        %(intervention_key)s
            Without it the model follows an undisturbed time course.
        %(control)s
        time_key
            Numeric column of ``obs`` with the time of observation, in any unit; gaps need not be equal.
        %(sep)s
        track_key
            Column that names the same cell (or clone) at several times, for ``pairing="tracked"``.
        **kwargs
            scvi-tools' options for new cells of a registered model.

        Raises
        ------
        sccausal._errors.SetupError
            There is no time, all cells have the same, or the times are labels.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        if time_key is None:
            raise SetupError("CITEVAE learns from times of observation: name their column with `time_key`.")
        if kwargs.get("source_registry") is None:
            check_times(adata, time_key, track_key)
        elif time_key not in adata.obs:
            raise SetupError(f"The cells need their time of observation: adata.obs[{time_key!r}] is not there.")
        uses = {"batch", "intervention", "time"}
        cls._register(adata, setup_method_args, uses=uses, is_count_data=False, **kwargs)

    @property
    def _has_interventions(self) -> bool:
        return bool(state_registry(self.registry_, KEYS.INTERVENTION))

    def _n_responsive(self, asked: int | None) -> int:
        if not self._has_interventions or self.adata is None:
            return asked or 8
        n = len(np.unique(np.asarray(self.adata_manager.get_from_registry(KEYS.INTERVENTION)), axis=0))
        most = max(1, (n - 1) // 2)
        if asked is not None and asked > most:
            warnings.warn(
                f"{asked} responsive latents need {2 * asked + 1} environments to be told apart one by one, but there "
                f"are {n} (control and {n - 1} interventions); with {most} the condition can hold.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        return asked or min(8, most)

    # ------------------------------------------------------------------ training

    def train(  # type: ignore[override]
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = 0.9,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 256,
        early_stopping: bool = False,
        external_indexing: Any = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Train the model on pairs of cells of adjacent times, redrawn every epoch.

        Parameters
        ----------
        max_epochs
            Passes through the cells that have an earlier time; default: about 3000 updates, between 10 and 300 epochs.
        accelerator, devices, train_size, validation_size, shuffle_set_split, early_stopping, external_indexing
            As in every model; see :meth:`sccausal.models.CausalModel.train`.
        batch_size
            Pairs per mini-batch; the alignment compares interventions within one, so that small ones say little.
        plan_kwargs
            Arguments of the training plan, whose learning rate falls along a cosine (``lr``, ``final_lr``).
        datasplitter_kwargs
            Arguments of :class:`sccausal.data.PairedDataSplitter`.
        **kwargs
            Further arguments of :meth:`sccausal.models.CausalModel.train`.

        Raises
        ------
        sccausal._errors.SetupError
            There are two times, and no time holds both control and perturbed cells.

        Warns
        -----
        UserWarning
            The invariant block has collapsed, there are two times only, or no time holds both control and perturbed
            cells.
        """
        splitting: dict[str, Any] = {"pairing": "time", "same_intervention": True, "one_time_per_batch": True}
        setup = self.registry_["setup_args"]
        if self.module.pairing == "tracked":
            if setup.get("track_key") is None:
                raise SetupError("pairing='tracked' needs `track_key` in setup_anndata, which names a cell over time.")
            splitting["stratify_by"] = setup["track_key"]
        elif setup.get("batch_key") is not None and self._batches_span_times(setup["batch_key"]):
            splitting["stratify_by"] = setup["batch_key"]
        time = np.ravel(self.adata_manager.get_from_registry(KEYS.TIME))
        if max_epochs is None:
            later = int((time > time.min()).sum())
            max_epochs = int(np.clip(_UPDATES // max(1, later // batch_size), 10, 300))
        if not getattr(self, "query_", None):
            check_design(time, self._doses(), setup["time_key"])
        try:
            super().train(
                max_epochs, accelerator, devices, train_size, validation_size, shuffle_set_split, batch_size,
                early_stopping, external_indexing, plan_kwargs,
                datasplitter_kwargs=splitting | dict(datasplitter_kwargs or {}), **kwargs,
            )  # fmt: skip
        finally:
            if self.is_trained_ and not getattr(self, "query_", None):
                self.module.eval()
                self._calibrate()
        self._warn_if_collapsed()

    def _batches_span_times(self, key: str) -> bool:
        """Whether every batch holds at least two times, so that pairs can stay within one."""
        time = np.ravel(self.adata_manager.get_from_registry(KEYS.TIME))
        return bool(pd.Series(time).groupby(self.adata.obs[key].astype(str).to_numpy()).nunique().min() > 1)

    def _make_data(self, split: list[np.ndarray] | None, *args: Any) -> Any:
        data = super()._make_data(split, *args)
        self._start_module(np.sort(np.asarray(data.train_idx)))
        return data

    @torch.no_grad()
    def _start_module(self, rows: np.ndarray) -> None:
        module, manager = self.module, self.adata_manager
        if bool(module.started):
            return
        module.started.fill_(True)
        X = manager.get_from_registry(KEYS.X)[rows]
        time = np.ravel(manager.get_from_registry(KEYS.TIME)).astype(float)[rows]
        dose = self._doses()[rows]
        counts = module.gene_likelihood != "gaussian"
        module.time_unit.fill_(float(np.median(np.diff(np.unique(time)))) if len(np.unique(time)) > 1 else 1.0)
        seed = int(settings.seed or 0)
        start = training_start(X, dose, time, module.n_responsive, module.n_invariant, counts, seed)
        module.start(start, linear=self.start_ == "statistics")
        if self.embedding_kind_ == "coexpression":
            control = self._values(rows[~(dose != 0).any(1)][:4000])
            own = self._own_genes()
            if len(control) > 1 and len(own):
                features = standard_columns(gene_loadings(control, own, module.n_features))
                module.embedding.copy_(torch.as_tensor(features))

    def _warn_if_collapsed(self) -> None:
        share = self.invariant_collapse()
        if share > 0.5:
            warnings.warn(
                f"{share:.0%} of the invariant latents are nearly constant: the block has collapsed and says nothing "
                "about cells. Use alignment='mmd', a smaller alignment_weight or invariant_kl, or free_bits.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )

    def invariant_collapse(self) -> float:
        """Share of the invariant latents whose posterior means hardly vary between training cells.

        Returns
        -------
        Number in 0..1; a latent counts as constant if the variance of its posterior means is below 0.05 of what its
        own prior and posterior together allow.
        """
        self._check_if_trained(warn=False)
        rows = self._training_rows()
        means, spreads = self._invariant_moments(rows[:: max(1, len(rows) // 2000)])
        return float((means / np.maximum(means + spreads, 1e-12) < _COLLAPSED).mean())

    def _assumptions(self) -> list[Check]:
        if self.adata is None:
            raise SetupError("The report needs cells; load the model with `adata`.")
        return assumptions(self)
