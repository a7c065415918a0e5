"""What GCRLVAE and DiscrepancyVAE share on AnnData."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi import settings
from torch import Tensor

from sccausal._compat import state_registry
from sccausal._docs import docs
from sccausal._errors import SetupError
from sccausal.data import KEYS, PairedDataSplitter, check_matrix
from sccausal.grn import Network
from sccausal.models.gcrl._assumptions import assumptions
from sccausal.models.gcrl._module import GCRLVAEModule
from sccausal.models.gcrl._outputs import ResidualMixin, check_residual
from sccausal.models.gcrl._priors import Prior, prior_loadings, routes
from sccausal.models.gcrl._statistics import dense_features, linear_start, training_statistics

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.models._identifiability import Check


class LatentSEMMixin(ResidualMixin):
    """Set-up, training and outputs of a variational autoencoder with causal latents."""

    _data_splitter_cls = PairedDataSplitter
    _module_cls = GCRLVAEModule

    # ------------------------------------------------------------------ construction

    @classmethod
    @docs.dedent
    def setup_anndata(
        cls: Any,
        adata: AnnData,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
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
        %(intervention_key)s
        %(control)s
        %(sep)s
        **kwargs
            scvi-tools' options for new cells of a registered model.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        if intervention_key is None:
            raise SetupError(
                f"{cls.__name__} learns from interventions: name their column with `intervention_key` and the label of "
                "the control cells with `control`."
            )
        cls._register(adata, setup_method_args, uses={"batch", "intervention"}, is_count_data=False, **kwargs)

    def _genes(self: Any) -> list[str]:
        if self.adata is not None:
            return [str(g) for g in self.get_var_names()]
        return [str(g) for g in state_registry(self.registry_, KEYS.X)["column_names"]]

    def _build(
        self: Any, prior: Prior | None, n_latent: int | None, residual: str, start: str, options: dict[str, Any]
    ) -> None:
        check_residual(residual)
        if start not in ("statistics", "random"):
            raise SetupError(f"Unknown start {start!r}; use 'statistics' or 'random'.")
        likelihood = options["gene_likelihood"]
        if likelihood == "nb" and self.adata is not None:
            check_matrix(self.adata, self.registry_["setup_args"].get("layer"), True)
        stats = self.summary_stats
        n_targets = int(stats[f"n_{KEYS.INTERVENTION}"])
        k = 0 if prior is None else len(prior.names)
        if n_latent is not None and n_latent < 1:
            raise SetupError(f"n_latent must be at least 1, got {n_latent}.")
        self.prior_ = None if prior is None else {"names": prior.names, "sets": prior.sets, "loadings": prior.loadings}
        self.residual_, self.start_, self.explained_ = residual, start, None
        self.module = self._module_cls(
            stats.n_vars,
            int(stats.get("n_batch", 1)),
            n_targets,
            n_latent or k or n_targets,
            n_activities=k,
            has_global=prior is not None and prior.has_global,
            **options,
        )
        with torch.no_grad():
            if k:
                self.module.routes.copy_(torch.as_tensor(routes(prior, self.codec.targets)))
                self.module.route()
        named = ", ".join(prior.names[:4]) + (", ..." if k > 4 else "") if prior is not None else "none"
        self._model_summary_string = (
            f"{type(self).__name__}: {stats.n_vars} genes, {self.module.n_latent} latents, {n_targets} target(s), "
            f"{options['intervention']} interventions, activities: {named}"
        )

    @property
    def latent_names(self: Any) -> list[str]:
        """Names of the latents: their activity, or ``latent_<i>``."""
        names = [f"latent_{i}" for i in range(self.module.n_latent)]
        if self.prior_ is not None:
            for activity, j in zip(self.prior_["names"], self.module.columns.tolist(), strict=True):
                names[j] = activity
        return names

    # ------------------------------------------------------------------ training

    def train(
        self: Any,
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
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Train the model on pairs of a control and a treated cell, redrawn every epoch.

        Parameters
        ----------
        max_epochs
            Passes through the treated cells; default: about 1500 updates, between 10 and 100 epochs.
        accelerator, devices, train_size, validation_size, shuffle_set_split, early_stopping
            As in every model; see :meth:`sccausal.models.CausalModel.train`.
        batch_size
            Pairs per mini-batch.
        external_indexing
            Rows of the training, validation and test cells, or a :class:`~sccausal.data.Split`, e.g. one that holds out
            combinations.
        plan_kwargs
            Arguments of :class:`sccausal.train.CausalTrainingPlan`.
        datasplitter_kwargs
            Arguments of :class:`sccausal.data.PairedDataSplitter`. By default pairs agree in the batch, and with many
            interventions a mini-batch holds one of them, so that there are enough cells to compare.
        **kwargs
            Further arguments of :meth:`sccausal.models.CausalModel.train`.
        """
        splitting = dict(datasplitter_kwargs or {})
        dose = np.asarray(self.adata_manager.get_from_registry(KEYS.INTERVENTION))
        n_conditions = len(np.unique(dose[(dose != 0).any(1)], axis=0))
        splitting.setdefault("one_condition_per_batch", n_conditions * 16 > batch_size)
        batch_key = self.registry_["setup_args"].get("batch_key")
        if batch_key is not None:
            splitting.setdefault("stratify_by", batch_key)
        if max_epochs is None:
            treated = int((dose != 0).any(1).sum())
            updates = max(1, treated // batch_size, n_conditions if splitting["one_condition_per_batch"] else 1)
            max_epochs = int(np.clip(1500 // updates, 10, 100))
        try:
            super().train(  # type: ignore[misc]
                max_epochs,
                accelerator,
                devices,
                train_size,
                validation_size,
                shuffle_set_split,
                batch_size,
                early_stopping,
                external_indexing,
                plan_kwargs,
                datasplitter_kwargs=splitting,
                **kwargs,
            )
        finally:
            # a run that was stopped leaves a usable model; query cells change nothing of the reference
            if self.is_trained_ and not getattr(self, "query_", None):
                self.module.eval()
                self._calibrate()
        self._warn_if_no_change()

    def _make_data(self: Any, split: list[np.ndarray] | None, *args: Any) -> Any:
        data = super()._make_data(split, *args)  # type: ignore[misc]
        self._start_module(np.sort(np.asarray(data.train_idx)))
        return data

    def _start_module(self: Any, rows: np.ndarray) -> None:
        module, manager = self.module, self.adata_manager
        dose = np.asarray(manager.get_from_registry(KEYS.INTERVENTION), dtype=float)[rows]
        seen = np.unique(dose != 0, axis=0)
        module.interventions.pairs.learn_interaction(int((seen.sum(1) > 1).sum()))
        if bool(module.started):
            return
        counts = module.gene_likelihood != "gaussian"
        X = manager.get_from_registry(KEYS.X)[rows]
        batch = np.asarray(manager.get_from_registry(KEYS.BATCH)).ravel().astype(int)[rows]
        stats = training_statistics(dense_features(X, counts), dose, batch, module.n_batch)
        if stats.conditions is None:
            raise SetupError("The training cells hold no control cell, or no treated one; both are needed.")
        if self.prior_ is not None:
            loadings, mean = prior_loadings(self._prior(), self._genes(), stats.features)
            module.loadings.copy_(torch.as_tensor(loadings))
            module.activity_mean.copy_(torch.as_tensor(mean))
        linear = None
        if self.start_ == "statistics":
            known = module.loadings.cpu().numpy() if module.n_activities else None
            encoded = module.interventions
            linear = linear_start(
                stats,
                dose,
                module.n_latent,
                module.encoder_genes.cpu().numpy(),
                known,
                allowed=encoded.allowed.cpu().numpy(),
                fixed=encoded.fixed.cpu().numpy(),
            )
        log_rate = None
        if counts:
            values = np.asarray(X.toarray() if hasattr(X, "toarray") else X, dtype=np.float64)[stats.control]
            log_rate = np.log((values * (1e4 / np.maximum(values.sum(1, keepdims=True), 1))).mean(0) + 1e-4)
        module.start(stats, linear, log_rate)

    def _warn_if_no_change(self: Any) -> None:
        if self.residual_ != "none" or self.explained_ is None:
            return
        total = float((self.explained_["change"] ** 2).sum())
        share = float((self.explained_["explained"] * self.explained_["change"] ** 2).sum()) / max(total, 1e-12)
        if share < 0.05:
            warnings.warn(
                f"The latents explain {max(share, 0.0):.1%} of the squared mean changes of training, so predictions "
                "will look like control cells. Use residual='shrunken', more latents or a larger discrepancy_weight.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )

    # ------------------------------------------------------------------ hooks of the base

    @property
    def prediction_units(self: Any) -> str:
        """``"counts"`` for counts, otherwise the unit of the data (``"as_given"``)."""
        return "as_given" if self.module.gene_likelihood == "gaussian" else "counts"

    def _encode(self: Any, tensors: dict[str, Tensor], representation: str) -> Tensor:
        module = self.module
        cells = module._get_inference_input(tensors)
        out = module.inference(**cells)
        if representation == "latent":
            return module.causal(out["y_mean"])
        if representation == "exogenous":
            return module.exogenous(out["y_mean"], cells["dose"].to(out["y_mean"].device))
        return module.activities(out["features"])

    def _assumptions(self: Any) -> list[Check]:
        if self.adata is None:
            raise SetupError("The report needs cells; load the model with `adata`.")
        return assumptions(self)

    # ------------------------------------------------------------------ what was learned

    def get_intervention_targets(self: Any) -> pd.DataFrame:
        """Where interventions act.

        Returns
        -------
        DataFrame, one row per target: ``intervention``, ``latent`` (name of the latent it acts on most),
        ``probability`` (how much of it acts there), ``magnitude`` (in standard deviations of the exogenous part),
        ``known`` (whether the activities say so) and ``explained`` (share of the squared mean change in training that
        the latents hold, noise included; below 0 they predict worse than no change; missing if the target was not seen
        by itself).
        """
        self._check_if_trained(warn=False)
        module, names = self.module, self.latent_names
        p = module.interventions.assignment().detach().cpu().numpy()
        size = module.interventions.magnitude.detach().cpu().numpy()
        where = p.argmax(1)
        explained = self.explained_["explained"] if self.explained_ is not None else pd.Series(dtype=float)
        return pd.DataFrame(
            {
                "intervention": list(self.codec.targets),
                "latent": [names[j] for j in where],
                "probability": p.max(1),
                "magnitude": size,
                "known": module.interventions.fixed.sum(1).cpu().numpy() > 0,
                "explained": [float(explained.get(t, np.nan)) for t in self.codec.targets],
            }
        )

    def get_latent_graph(self: Any, threshold: float = 0.0) -> Network:
        """Graph among the latents.

        Parameters
        ----------
        threshold
            Only edges with ``|weight| > threshold``, in standard deviations of the exogenous parts.

        Returns
        -------
        Network of the latents by name. With ``intervention="shift"`` and without activities any graph fits the cells
        equally well, and this one is empty; see ``identifiability_report()``.
        """
        self._check_if_trained(warn=False)
        matrix = self.module.graph.matrix().detach().cpu().numpy()
        return Network.from_matrix(
            matrix,
            self.latent_names,
            threshold=threshold,
            metadata={
                "method": type(self).__name__,
                "units": "standard deviations of exogenous parts",
                "intervention": self.module.intervention_kind,
            },
        )
