"""CausCell on AnnData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from sccausal._compat import setup_args
from sccausal._docs import docs
from sccausal._errors import InputDataError, SetupError, unknown_name
from sccausal.data import KEYS
from sccausal.models._base import CausalModel
from sccausal.models.causcell._assumptions import assumptions
from sccausal.models.causcell._concepts import DAG, Concept, read_concepts, read_dag, read_ordered, seen_levels
from sccausal.models.causcell._counterfactual import CounterfactualMixin
from sccausal.models.causcell._effects import EffectsMixin
from sccausal.models.causcell._embeddings import EmbeddingsMixin
from sccausal.models.causcell._module import CausCellModule
from sccausal.nn.concepts import EdgeKind

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from anndata import AnnData

    from sccausal.models._identifiability import Check

_UPDATES = 1200


class CausCell(EmbeddingsMixin, EffectsMixin, CounterfactualMixin, CausalModel):
    r"""Concepts of cells held apart, joined by a causal graph, and cells as they would have been :cite:p:`Gao2025`.

    Annotated concepts (cell type, donor, age, stimulus, ...) get one embedding each, and what they leave unexplained
    one more. Embeddings obey a linear structural model over a given graph; a diffusion model conditioned on them gives
    expression. Setting a concept to another value and letting its descendants follow answers what the same cell would
    have shown.

    Parameters
    ----------
    adata
        Cells that :meth:`setup_anndata` has seen: log-normalised, or counts for ``gene_likelihood="nb"``.
    registry
        Registry of a saved model, in place of ``adata``.
    dag
        Which concept causes which: ``{child: [parents]}``, a networkx DiGraph or an adjacency frame (rows are sources).
        ``None``: concepts are independent, so that interventions reach expression only directly.
    ordered
        Concepts of ``concept_keys`` whose levels are numbers, so that values between them can be asked for: names, or
        ``{name: {level: number}}`` where the labels themselves are not numbers.
    n_latent
        Dimensions of an embedding.
    edge
        ``"map"``: a matrix per edge, which can turn the parent's axes into the child's; ``"scalar"``: one weight
        (paper).
    learn_edges
        Whether the weights of the edges are learned.
    n_hidden, n_tokens, n_layers
        Width of the denoiser, tokens that genes are projected to, and attention blocks.
    n_encoder
        Width of the encoder.
    dropout
        Share of inputs left out in training.
    exogenous_weight, endogenous_weight
        Weights of the KL terms, per gene: of exogenous parts to a standard normal law, and of embeddings to the law of
        their label. The second clears embeddings of what tells cells of one label apart, which belongs to the
        unexplained part; it costs labels nothing, so it is the larger one.
    classifier_weight, adversary_weight, unexplained_weight, consistency_weight
        Weights of the classifiers on embeddings, of the adversaries between concepts, of the adversary on the
        unexplained part, and of the consistency of set parents with observed labels.
    ema_decay
        Decay of the averaged weights that inference uses.
    gene_likelihood
        ``"gaussian"``: log-normalised cells, noise is added to genes. ``"nb"``: counts, noise is added in the latent
        space of an autoencoder with negative binomial counts, and predictions are counts.
    levels
        Levels of interventions and knots of the time; default: those in the cells.

    Notes
    -----
    An edge that is missing from ``dag`` is a claim: its effect will not be seen. Differences between counterfactual
    and observed cells are effects only if the graph is right and nothing hidden causes two concepts.

    See Also
    --------
    sccausal.tl.concept_de : genes that change with a concept.
    sccausal.models.ScConCRL : response to one condition, with a gene network.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_concepts(120, 30, seed=0))
    >>> scc.CausCell.setup_anndata(adata, concept_keys=["a", "b"])
    >>> model = scc.CausCell(adata, dag={"b": ["a"]})
    >>> model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)  # in earnest: model.train()
    >>> model.counterfactual(do={"a": "a1"}).shape
    (120, 30)
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"perturbation"})
    representations: ClassVar[tuple[str, ...]] = ("endogenous", "exogenous", "unexplained")
    _module_cls = CausCellModule

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        dag: DAG | None = None,
        ordered: Sequence[str] | Mapping[str, Mapping[str, float]] | None = None,
        n_latent: int = 32,
        edge: EdgeKind = "map",
        learn_edges: bool = True,
        n_hidden: int = 96,
        n_tokens: int = 4,
        n_layers: int = 3,
        n_encoder: int = 256,
        dropout: float = 0.1,
        exogenous_weight: float = 1.0,
        endogenous_weight: float = 3.0,
        classifier_weight: float = 1.0,
        adversary_weight: float = 0.2,
        unexplained_weight: float = 1.0,
        consistency_weight: float = 1.0,
        ema_decay: float = 0.995,
        gene_likelihood: Literal["gaussian", "nb"] = "gaussian",
        levels: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        super().__init__(adata, registry)
        arguments = setup_args(self.registry_)
        ordered = read_ordered(ordered, self.registry_)
        if levels is None:
            levels = seen_levels(self.adata_manager, self.registry_, arguments.get("time_key"))
        concepts = read_concepts(self.registry_, arguments, ordered, levels)
        names = [c.name for c in concepts]
        dag = read_dag(dag, names)
        parents = [[names.index(p) for p in (dag or {}).get(n, ())] for n in names]
        self.module = self._module_cls(
            self.summary_stats.n_vars,
            concepts,
            parents,
            n_latent=n_latent,
            edge=edge,
            learn_edges=learn_edges,
            n_hidden=n_hidden,
            n_tokens=n_tokens,
            n_layers=n_layers,
            n_encoder=n_encoder,
            dropout=dropout,
            exogenous_weight=exogenous_weight,
            endogenous_weight=endogenous_weight,
            classifier_weight=classifier_weight,
            adversary_weight=adversary_weight,
            unexplained_weight=unexplained_weight,
            consistency_weight=consistency_weight,
            ema_decay=ema_decay,
            gene_likelihood=gene_likelihood,
        )
        shown = ", ".join(f"{c.name} ({c.n_levels})" for c in concepts)
        edges = ", ".join(f"{p} -> {n}" for n, above in (dag or {}).items() for p in above) or "none"
        self._model_summary_string = f"CausCell: {self.summary_stats.n_vars} genes, concepts {shown}, edges {edges}"
        del arguments, concepts, names, parents, shown, edges
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    @docs.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        condition_key: str | None = None,
        intervention_key: str | None = None,
        control: str | None = None,
        sep: str | None = "+",
        time_key: str | None = None,
        concept_keys: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Register the cells.

        Parameters
        ----------
        %(setup_adata)s
        %(layer)s
        %(condition_key)s A concept like those of ``concept_keys``, which in addition has a control, so that
            ``model.perturbation`` can predict it.
        %(intervention_key)s A concept as well; at most one of the two.
        %(control)s
        %(sep)s
        %(time_key)s A concept whose values are numbers.
        %(concept_keys)s
        **kwargs
            scvi-tools' options for new cells of a registered model.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        treated = condition_key is not None or intervention_key is not None
        cls._register(
            adata,
            setup_method_args,
            uses={"condition", "intervention", "time", "concepts"} if treated else {"time", "concepts"},
            is_count_data=False,
            condition_as_intervention=treated,
            **kwargs,
        )

    # ------------------------------------------------------------------ the concepts

    @property
    def concepts(self) -> list[str]:
        """Names of the concepts, in the order of the set-up."""
        return [c.name for c in self.module.concepts]

    @property
    def dag(self) -> dict[str, list[str]]:
        """Parents of each concept that has any."""
        names = self.concepts
        return {n: [names[i] for i in above] for n, above in zip(names, self.module.scm.parents, strict=True) if above}

    def _concept(self, name: str) -> tuple[int, Concept]:
        if name not in self.concepts:
            raise unknown_name("concept", name, self.concepts, "the set-up of the model")
        return self.concepts.index(name), self.module.concepts[self.concepts.index(name)]

    # ------------------------------------------------------------------ training

    def _make_data(self, split: list[np.ndarray] | None, *args: Any) -> pl.LightningDataModule:
        data = super()._make_data(split, *args)
        if split is None:
            # genes are scaled and labels counted on the very cells that are trained on
            data.setup("fit")
            split = [np.asarray(getattr(data, n)) for n in ("train_idx", "val_idx", "test_idx")]
            data = super()._make_data(split, *args)
        if not self.is_trained_:
            self._start_module(np.sort(split[0]))
        return data

    def _start_module(self, rows: np.ndarray) -> None:
        X = self.adata_manager.get_from_registry(KEYS.X)[rows]
        X = np.asarray(X.toarray() if hasattr(X, "toarray") else X, dtype=np.float32)
        if self.prediction_units == "counts" and (X.min() < 0 or (X != np.round(X)).any()):
            raise InputDataError(
                f"gene_likelihood='nb' needs counts, but the expression has values such as "
                f"{float(X[(X < 0) | (X != np.round(X))][0]):g}. Name the layer of counts in setup_anndata(layer=...)."
            )
        self.module.start(X, [w[rows] for w in self._label_weights()])
        self.nonnegative_ = bool(X.min() >= 0)

    def _label_weights(self) -> list[np.ndarray]:
        """Level weights (cells, levels) of each concept in the model's own cells."""
        tensors = {}
        for concept in self.module.concepts:
            values = self.adata_manager.get_from_registry(concept.source)
            dense = values.toarray() if hasattr(values, "toarray") else np.asarray(values, dtype=np.float32)
            tensors[concept.source] = torch.as_tensor(np.ascontiguousarray(dense, dtype=np.float32))
        return [c.weights(tensors).numpy() for c in self.module.concepts]

    def train(  # type: ignore[override]
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = 0.9,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int | None = None,
        early_stopping: bool = False,
        external_indexing: Any = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Train the model.

        Parameters
        ----------
        max_epochs
            Passes through the training cells; default: about 1 200 updates, between 20 and 150 epochs.
        accelerator, devices, train_size, validation_size, shuffle_set_split
            As in every model; see :meth:`sccausal.models.CausalModel.train`.
        early_stopping
            Stop when the denoising error of the validation cells (``1 - train_size`` of them) has not fallen for
            ``early_stopping_patience`` epochs. They are given the same noise in every epoch, and the averaged weights.
            Of use with a ``max_epochs`` above the default, which is short enough for most data.
        batch_size
            Cells per minibatch; default 256, or an eighth of the cells where they are few.
        external_indexing
            Rows of the training, validation and test cells, or a :class:`~sccausal.data.Split`.
        plan_kwargs
            Arguments of :class:`sccausal.train.CausalTrainingPlan`.
        **kwargs
            Further arguments of :meth:`sccausal.models.CausalModel.train`.
        """
        if batch_size is None:
            batch_size = int(np.clip(self.adata.n_obs * (train_size or 0.9) // 8, 32, 256))
        if max_epochs is None:
            updates = max(1, round(self.adata.n_obs * (train_size or 0.9) / batch_size))
            max_epochs = int(np.clip(_UPDATES // updates, 20, 150))
        # the ELBO says little here: KL terms rise while embeddings learn their labels
        kwargs.setdefault("early_stopping_monitor", "reconstruction_loss_validation")
        super().train(
            max_epochs,
            accelerator=accelerator,
            devices=devices,
            train_size=train_size,
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            batch_size=batch_size,
            early_stopping=early_stopping,
            external_indexing=external_indexing,
            plan_kwargs={"lr": 2e-3, "gradient_clip_val": 1.0, **(plan_kwargs or {})},
            **kwargs,
        )
        self.module.finish()

    def _assumptions(self) -> list[Check]:
        if self.adata is None:
            raise SetupError("The report needs cells; load the model with `adata`.")
        return assumptions(self)
