"""GCRLAE on AnnData: an autoencoder aligned with activities, and the tests of this alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from scvi import settings
from torch import Tensor

from sccausal._compat import state_registry
from sccausal._docs import docs
from sccausal._errors import NotSupportedError, SetupError
from sccausal.data import KEYS
from sccausal.models._base import CausalModel
from sccausal.models.gcrl._alignment_test import AlignmentTest, permutation_test
from sccausal.models.gcrl._assumptions import alignment_assumptions
from sccausal.models.gcrl._autoencoder_module import GCRLAEModule
from sccausal.models.gcrl._model import gene_names
from sccausal.models.gcrl._outputs import Residual, ResidualMixin, check_residual
from sccausal.models.gcrl._priors import Activities, Prior, prior_loadings, read_prior
from sccausal.models.gcrl._statistics import dense_features, training_statistics
from sccausal.nn.alignment import Alignment, Constraint, align, constrained_maps, moments, tmex_score

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.models._identifiability import Check


class GCRLAE(ResidualMixin, CausalModel):
    r"""Autoencoder whose latents are aligned with known activities :cite:p:`gCRL2026`.

    Encoder: one hidden layer; decoder: a polynomial of degree two, with which latents are identified up to an affine
    map under suitable interventions :cite:p:`Ahuja2023`. After training, the linear map A is found for which each
    latent measures one activity given the others (:func:`sccausal.nn.tmex_score`), and tested against communities of
    the same sizes drawn at random.

    Parameters
    ----------
    adata
        Cells that :meth:`setup_anndata` has seen, log-normalised.
    registry
        Registry of a saved model, in place of ``adata``.
    activities, with_global, min_genes, max_activities
        As in :class:`~sccausal.models.GCRLVAE`.
    encoder_genes
        Genes the encoder sees: names, or a boolean column of ``adata.var``. Default: the genes of the sets.
    n_latent
        Number of latents; default one per activity.
    n_hidden
        Width of the encoder.
    condition_on_global
        Whether communities are aligned given the global activity as well (paper). Given it, little of a community is
        left but noise.
    constraint
        On A: ``None`` (closed form), ``"orthogonal"`` or ``"invertible"`` (by gradient).
    residual
        As in :class:`~sccausal.models.GCRLVAE`, for predictions of interventions.

    Notes
    -----
    Interventions are optional. Where they are given, they shift the latents by their mean changes, and
    ``model.perturbation`` predicts from these shifts.

    See Also
    --------
    sccausal.pl.alignment, sccausal.pl.tmex_null

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_latent_sem(200, n_genes=12, n_latent=3, seed=0)
    >>> scc.GCRLAE.setup_anndata(adata)
    >>> model = scc.GCRLAE(adata, activities={"first": adata.var_names[:4], "second": adata.var_names[4:8]})
    >>> model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)  # in earnest: model.train()
    >>> model.permutation_test(n_permutations=19).to_frame().index.tolist()
    ['autoencoder', 'PCA', 'random projection']
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"perturbation"})
    representations: ClassVar[tuple[str, ...]] = ("aligned", "latent", "activity")
    _module_cls = GCRLAEModule

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
        n_hidden: int = 64,
        condition_on_global: bool = False,
        constraint: Constraint | None = None,
        residual: Residual = "shrunken",
    ) -> None:
        super().__init__(adata, registry)
        check_residual(residual)
        known: Any = state_registry(self.registry_, KEYS.X)["column_names"] if adata is None else self.get_var_names()
        genes = [str(g) for g in known]
        prior = read_prior(
            activities, genes, with_global=with_global, min_genes=min_genes, max_activities=max_activities
        )
        if prior is None:
            raise SetupError("GCRLAE needs `activities`: sets of genes, a GMT file, or loadings.")
        activities = prior.sets if prior.loadings is None else prior.loadings
        encoder_genes = gene_names(encoder_genes, genes, self.adata) or _genes_of(prior, genes)
        self.prior_ = {"names": prior.names, "sets": prior.sets, "loadings": prior.loadings}
        self.residual_, self.explained_, self.constraint_ = residual, None, constraint
        self.condition_on_global_ = condition_on_global
        stats = self.summary_stats
        self.module = self._module_cls(
            stats.n_vars,
            int(stats.get("n_batch", 1)),
            int(stats.get(f"n_{KEYS.INTERVENTION}", 0)),
            n_latent or len(prior.names),
            len(prior.names),
            encoder_genes=pd.Index(genes).get_indexer(pd.Index(encoder_genes)),
            n_hidden=n_hidden,
        )
        self._model_summary_string = (
            f"GCRLAE: {stats.n_vars} genes, {len(encoder_genes)} of them in the encoder, {self.module.n_latent} "
            f"latents, {len(prior.names)} activities"
        )
        del genes, known, prior, stats
        self.init_params_ = self._get_init_params(locals())

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
        %(intervention_key)s Optional.
        %(control)s
        %(sep)s
        **kwargs
            scvi-tools' options for new cells of a registered model.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        cls._register(adata, setup_method_args, uses={"batch", "intervention"}, is_count_data=False, **kwargs)

    # ------------------------------------------------------------------ training

    def train(self, max_epochs: int | None = None, *args: Any, batch_size: int = 256, **kwargs: Any) -> None:
        """Train the autoencoder, then align it.

        Parameters
        ----------
        max_epochs
            Passes through the training cells; default 100, fewer for more than 50 000 cells.
        *args, **kwargs
            Further arguments of :meth:`sccausal.models.CausalModel.train`.
        batch_size
            Cells per mini-batch (1024 in the paper).
        """
        if max_epochs is None:
            max_epochs = int(np.clip(20_000 * batch_size // max(1, self.adata.n_obs), 10, 100))
        try:
            super().train(max_epochs, *args, batch_size=batch_size, **kwargs)
        finally:
            if self.is_trained_ and not getattr(self, "query_", None):
                self.module.eval()
                self._finish()

    def _make_data(self, split: list[np.ndarray] | None, kwargs: dict[str, Any]) -> Any:
        data = super()._make_data(split, kwargs)
        if not bool(self.module.started):
            data.setup("fit")
            parts = [np.asarray(getattr(data, n)) for n in ("train_idx", "val_idx", "test_idx")]
            if split is None:  # the statistics must come from the very cells that are trained on
                data = super()._make_data(parts, kwargs)
            rows = np.sort(parts[0])
            batch = np.asarray(self.adata_manager.get_from_registry(KEYS.BATCH)).ravel().astype(int)[rows]
            X = dense_features(self.adata_manager.get_from_registry(KEYS.X)[rows], False)
            stats = training_statistics(X, np.zeros((len(rows), 0)), batch, self.module.n_batch)
            self.module.start(stats, *prior_loadings(self._prior(), self._genes(), stats.features))
        return data

    def _genes(self) -> list[str]:
        return [str(g) for g in self.get_var_names()]

    @torch.no_grad()
    def _finish(self) -> None:
        """Align the latents on the training cells and read off what interventions do to them."""
        module = self.module
        out = self._training_outputs()
        module.latent_mean.copy_(out["y_mean"].mean(0))
        module.latent_scale.copy_(out["y_mean"].std(0).clamp_min(1e-6))
        found = self._align(out["activity"].numpy(), out["y_mean"].numpy(), self.constraint_)
        self.scores_, self.condition_number_ = found.scores, found.condition
        module.alignment.copy_(torch.as_tensor(found.A))
        if module.n_targets:
            from sccausal.models.gcrl._statistics import condition_changes

            rows = self._training_rows()
            dose = np.asarray(self.adata_manager.get_from_registry(KEYS.INTERVENTION), dtype=float)[rows]
            changes = condition_changes(out["y_mean"].numpy(), dose, ~(dose != 0).any(1))
            if changes is not None:
                module.response.mean.copy_(torch.as_tensor(changes.singles()))
            self._calibrate()

    @torch.no_grad()
    def _training_outputs(self) -> dict[str, Tensor]:
        """Latents and activities of the training cells."""
        module = self.module
        parts = []
        for tensors in self._training_tensors(self._training_rows()):
            out = module.inference(**module._get_inference_input(tensors))
            features = out["features"]
            parts.append((out["y_mean"].cpu(), module.activities(features).cpu(), features.cpu()))
        y, activity, features = (torch.cat(p) for p in zip(*parts, strict=True))
        return {"y_mean": y, "activity": activity, "features": features}

    # ------------------------------------------------------------------ alignment

    def _align(self, activity: np.ndarray, z: np.ndarray, constraint: Constraint | None) -> Alignment:
        if self.condition_on_global_ or not self._prior().has_global or activity.shape[1] < 2:
            return align(activity, z, constraint=constraint)
        if constraint is not None:
            raise SetupError("With a constraint on A, use condition_on_global=True or with_global=False.")
        first, rest = align(activity, z), align(activity[:, 1:], z)
        A = np.hstack([first.A[:, :1], rest.A])
        scores = np.concatenate([first.scores[:1], rest.scores])
        return Alignment(A, scores, float(rest.scores.mean()), float(np.linalg.cond(A)))

    def get_alignment(self) -> pd.DataFrame:
        r"""How well each aligned latent measures its activity.

        Returns
        -------
        DataFrame, one row per activity: ``partial`` (partial correlation given the other activities, on training
        cells), ``correlation`` and ``before`` (largest absolute correlation of the activity with any latent before
        alignment). Its ``attrs`` hold ``tmex`` (mean of ``partial`` over the communities) and ``condition`` (condition
        number of A).
        """
        self._check_if_trained(warn=False)
        out = self._training_outputs()
        t, y = out["activity"].double(), out["y_mean"].double()
        z = self.module.aligned(out["y_mean"]).double().detach()
        after, before = moments(t, z).tz, moments(t, y.detach()).tz
        frame = pd.DataFrame(
            {"partial": self.scores_, "correlation": after.diagonal().numpy(), "before": before.abs().amax(1).numpy()},
            index=pd.Index(self._prior().names, name="activity"),
        )
        own = frame["partial"].iloc[1:] if self._skips_global else frame["partial"]
        frame.attrs.update(tmex=float(own.mean()), condition=self.condition_number_)
        return frame

    @property
    def _skips_global(self) -> bool:
        return self._prior().has_global and not self.condition_on_global_ and len(self._prior().names) > 1

    def permutation_test(self, n_permutations: int = 999, *, seed: int = 0) -> AlignmentTest:
        """Test the alignment against communities of the same sizes with genes drawn at random.

        Parameters
        ----------
        n_permutations
            Number of random partitions B; the smallest p-value is 1 / (1 + B).
        seed
            Seed of the partitions and of the random projection.

        Returns
        -------
        The observed score, its null distribution and p-value for the latents of the autoencoder and, on the same
        partitions, for principal components and a random projection of equal width. If these do as well, the score says
        something about the data and nothing about the autoencoder.

        Raises
        ------
        sccausal._errors.NotSupportedError
            Activities are loadings, or there is one set only: nothing can be permuted.
        """
        self._check_if_trained(warn=False)
        if self._prior().loadings is not None or len(self._prior().sets) < 2:
            raise NotSupportedError("A permutation test needs two or more sets of genes as activities.")
        return permutation_test(self, n_permutations, seed)

    def seed_variability(
        self, n_seeds: int = 100, *, constraint: Constraint = "invertible", retrain: int = 0, n_steps: int = 300
    ) -> pd.DataFrame:
        """How much of the score is chance of the optimisation.

        Parameters
        ----------
        n_seeds
            Random starts of A by gradient, all at once. (The closed form has no start.)
        constraint
            As in the model.
        retrain
            Trainings of the autoencoder from other seeds, each with its closed-form alignment.
        n_steps
            Steps of the gradient.

        Returns
        -------
        DataFrame with ``kind`` (``"alignment"`` or ``"training"``), ``seed`` and ``tmex``.
        """
        self._check_if_trained(warn=False)
        out = self._training_outputs()
        activity = out["activity"][:, 1:] if self._skips_global else out["activity"]
        m = moments(activity.double().numpy(), out["y_mean"].detach().double().numpy()[:, : activity.shape[1]])
        maps = constrained_maps(m, constraint, n_steps=n_steps, n_starts=n_seeds)[: n_seeds + 1]
        rotated = type(m)(m.tt, m.tz @ maps, maps.transpose(1, 2) @ m.zz @ maps, m.n)
        rows = [{"kind": "alignment", "seed": i, "tmex": float(s)} for i, s in enumerate(tmex_score(rotated))]
        before = settings.seed
        try:
            for run in range(1, retrain + 1):
                settings.seed = (before or 0) + 7919 * run
                twin = type(self)(self.adata, **self.init_params_["non_kwargs"])
                twin.train(enable_progress_bar=False)
                rows.append({"kind": "training", "seed": settings.seed, "tmex": twin.get_alignment().attrs["tmex"]})
        finally:
            settings.seed = before
        return pd.DataFrame(rows)

    # ------------------------------------------------------------------ hooks of the base

    def _encode(self, tensors: dict[str, Tensor], representation: str) -> Tensor:
        module = self.module
        out = module.inference(**module._get_inference_input(tensors))
        if representation == "aligned":
            return module.aligned(out["y_mean"])
        return out["y_mean"] if representation == "latent" else module.activities(out["features"])

    def _assumptions(self) -> list[Check]:
        if self.adata is None:
            raise SetupError("The report needs cells; load the model with `adata`.")
        return alignment_assumptions(self)


def _genes_of(prior: Prior, genes: Sequence[str]) -> list[str]:
    members = {g for own in prior.sets.values() for g in own}
    return [g for g in genes if g in members]
