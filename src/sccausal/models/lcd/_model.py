"""LCD on AnnData."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from scvi import settings
from torch import Tensor

from sccausal._compat import state_registry
from sccausal._docs import docs
from sccausal._errors import SetupError, unknown_name
from sccausal.data import KEYS, check_matrix
from sccausal.models._base import CausalModel
from sccausal.models.lcd._assumptions import assumptions
from sccausal.models.lcd._drift import Injection
from sccausal.models.lcd._module import LCDModule
from sccausal.models.lcd._noise import Generator
from sccausal.models.lcd._outputs import PREDICTIONS, OutputsMixin
from sccausal.models.lcd._statistics import EFFECTS, Effects
from sccausal.models.lcd._training import TrainingMixin
from sccausal.nn.score import PARAMETRISATIONS, Parametrisation

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.models._identifiability import Check

# what the paper's code does where it differs from the defaults
_PAPER: dict[str, Any] = {
    "parametrisation": "reference", "effects": "none", "prediction": "sample", "n_hidden": 1024, "n_embedding": 1024,
    "n_interaction": 0, "init_scale": 0.01, "sigma_min": 0.01, "ema_decay": 0.0, "n_draws": 1, "calibrate": False,
    "n_states": 20_000, "generator": "per_env",
}  # fmt: skip


class LCD(TrainingMixin, OutputsMixin, CausalModel):  # type: ignore[misc]
    r"""Stationary diffusion of expression under interventions, with direct effects between genes :cite:p:`Lorch2026`.

    The cells of an intervention are the stationary law of :math:`dx = f(x; c)\,dt + \sqrt 2\,dW`, whose drift f is the
    score of a conditional density, learned by denoising. A combination is the sum of its parts in the embedding of
    conditions. Direct effects (CLIPR) follow in closed form from where cells rest under each perturbation.

    Parameters
    ----------
    adata
        Cells that :meth:`setup_anndata` has seen: log-normalised for ``noise_model=None``, counts for ``"zip"``.
    registry
        Registry of a saved model, in place of ``adata``.
    noise_model
        ``None``: cells are the states. ``"zip"``: cells are zero-inflated Poisson counts of states, which a generator
        learns first (stage ``"noise"``).
    preset
        ``"cpu"`` (the defaults) or ``"paper"``: the settings of the paper's code, for arguments left at their default.
    effects
        Mean effect of each target that is carried in closed form: ``"shrunken"`` towards none by its sampling error,
        with effect sizes learned for each target, ``"exact"``, or ``"none"`` (paper).
    prediction
        How a control cell becomes a treated one: ``"transport"`` along the flow to noise under control and back under
        the intervention, ``"shift"`` by the mean effect alone, or ``"sample"``: not at all, cells are drawn anew
        (paper).
    parametrisation
        What the denoiser is without its network: that of a ``"gaussian"`` with the covariance of the cells, ``"edm"``,
        or the ``"reference"`` form of the paper.
    n_hidden, n_layers, n_embedding, n_interaction
        Sizes of the network, of the embedding of conditions, and rank of what pairs add to it.
    injection
        ``"inject"``: conditions are added to hidden layers; ``"mult"``: they multiply them (an ablation of the paper).
    n_axes
        Axes of the Gaussian with a variance of their own.
    sigma_min, sigma_max, n_sigma
        Levels of noise, in standard deviations of each gene.
    n_draws
        Draws of noise per cell and step.
    ema_decay
        Decay of averaged weights; the model predicts with the averages.
    init_scale
        Standard deviation of embeddings at the start; at 0 all interventions start as control.
    calibrate
        Scale each target's embedding by what it is worth on validation cells.
    generator
        Stage 1: ``"film"`` (environments share a net) or ``"per_env"`` (each its own, as in the paper).
    n_states
        Stage 1: states drawn per environment and step.
    temperatures
        Stage 1: temperatures over which the evidence is averaged; default 1 and a fiftieth of the genes (20 for 1 000,
        as in the paper): with few genes a higher one makes states too alike.
    on_unseen
        For targets without cells in training (possible with a frame of doses): ``"mean"`` of the others with a warning,
        or ``"raise"``.
    align_queries
        Take source cells as a batch of their own, relative to their own control cells: for models trained on a single
        batch. With ``batch_key``, batches that were not in training are recognised without it.
    environment_rows
        Stage 1 with ``"per_env"``: doses and batch of each environment; read off the data.

    Notes
    -----
    Without evidence for more, a prediction is the control cell plus the sum of shrunken effects. Genes with a spike at
    zero keep it (cells drop to zero or leave it). Source cells of a batch the model has not seen are taken relative to
    their own control cells.

    See Also
    --------
    sccausal.tl.clipr : direct effects without a model.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_stationary(8, n_cells=40, seed=0)
    >>> scc.LCD.setup_anndata(adata, intervention_key="intervention", control="control")
    >>> model = scc.LCD(adata)
    >>> model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)  # in earnest: model.train()
    >>> predicted = model.perturbation.predict(interventions=["G000+G001"])
    >>> model.clipr(n_bootstrap=10).direct_effects.shape  # sources x targets
    (8, 8)
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"perturbation", "grn"})
    representations: ClassVar[tuple[str, ...]] = ("state", "standardised")
    _accepts_new_batches: ClassVar[bool] = True
    _module_cls = LCDModule

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        noise_model: Literal["zip"] | None = None,
        preset: Literal["cpu", "paper"] = "cpu",
        effects: Effects | None = None,
        prediction: Literal["transport", "shift", "sample"] | None = None,
        parametrisation: Parametrisation | None = None,
        n_hidden: int | None = None,
        n_layers: int = 2,
        n_embedding: int | None = None,
        n_interaction: int | None = None,
        injection: Injection = "inject",
        n_axes: int = 100,
        sigma_min: float | None = None,
        sigma_max: float = 10.0,
        n_sigma: int = 30,
        n_draws: int | None = None,
        ema_decay: float | None = None,
        init_scale: float | None = None,
        calibrate: bool | None = None,
        generator: Generator | None = None,
        n_states: int | None = None,
        temperatures: Sequence[float] | None = None,
        on_unseen: Literal["mean", "raise"] = "mean",
        align_queries: bool = False,
        environment_rows: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__(adata, registry)
        given = {
            "effects": effects, "prediction": prediction, "parametrisation": parametrisation, "n_hidden": n_hidden,
            "n_embedding": n_embedding, "n_interaction": n_interaction, "sigma_min": sigma_min, "n_draws": n_draws,
            "ema_decay": ema_decay, "init_scale": init_scale, "calibrate": calibrate, "generator": generator,
            "n_states": n_states,
        }  # fmt: skip
        chosen = _with_preset(preset, given)
        _check_choices(noise_model, chosen, injection, on_unseen)
        if noise_model == "zip" and adata is not None:
            check_matrix(self.adata, self.registry_["setup_args"].get("layer"), True)
        self.effects_, self.prediction_ = chosen.pop("effects"), chosen.pop("prediction")
        self.calibrate_, self.on_unseen_, self.preset_ = chosen.pop("calibrate"), on_unseen, preset
        self.align_queries_ = bool(align_queries)
        self.noise_history_ = None
        stats = self.summary_stats
        n_targets = int(stats[f"n_{KEYS.INTERVENTION}"])
        own = noise_model is not None and chosen["generator"] == "per_env"
        if own and environment_rows is None and adata is not None:
            environment_rows = self._environment_rows()
        self.module = self._module_cls(
            stats.n_vars,
            int(stats.get("n_batch", 1)),
            n_targets,
            n_layers=n_layers,
            injection=injection,
            n_axes=n_axes,
            sigma_max=sigma_max,
            n_sigma=n_sigma,
            noise_model=noise_model,
            temperatures=_temperatures(temperatures, stats.n_vars),
            environment_rows=environment_rows,
            **chosen,
        )
        self._model_summary_string = (
            f"LCD: {stats.n_vars} genes, {n_targets} target(s), {int(stats.get('n_batch', 1))} batch(es), noise model: "
            f"{noise_model or 'none'}, preset {preset}, prediction: {self.prediction_}"
        )
        del given, chosen, stats, n_targets, own
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
        sep: str | None = "+",
        **kwargs: Any,
    ) -> None:
        """Register the cells.

        Parameters
        ----------
        %(setup_adata)s
        %(layer)s
        %(batch_key)s
        %(intervention_key)s Targets need not be measured genes; direct effects are told only of those that are.
        %(control)s
        %(sep)s
        **kwargs
            scvi-tools' options for new cells of a registered model.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        if intervention_key is None:
            raise SetupError("LCD needs `intervention_key`: the stationary law is learned per intervention.")
        cls._register(adata, setup_method_args, uses={"batch", "intervention"}, is_count_data=False, **kwargs)

    # ------------------------------------------------------------------ hooks of the base

    @property
    def prediction_units(self) -> str:
        """``"counts"`` with a noise model, otherwise the unit of the data (``"as_given"``)."""
        return "as_given" if self.module.noise is None else "counts"

    def _encode(self, tensors: dict[str, Tensor], representation: str) -> Tensor:
        module = self.module
        cells = module._get_inference_input(tensors)
        x = cells["x"].to(module.scale.device)
        if module.noise is not None:
            x = module.moment_states(x)
        if representation == "state":
            return x
        return (x - self._level(cells["batch"].to(x.device))) / module.scale

    def _assumptions(self) -> list[Check]:
        if self.adata is None:
            raise SetupError("The report needs cells; load the model with `adata`.")
        return assumptions(self)

    # ------------------------------------------------------------------ parts

    def _require_drift(self) -> None:
        if not bool(self.module.started):
            raise SetupError("The drift is not trained yet; call train(stage='drift').")

    def _warn_unseen(self, row: np.ndarray) -> None:
        unseen = [self.codec.targets[t] for t in np.flatnonzero(row) if not bool(self.module.seen[t])]
        if not unseen:
            return
        text = f"No training cell was under {', '.join(unseen)}"
        if self.on_unseen_ == "raise":
            raise SetupError(f"{text}; with on_unseen='mean' the mean effect of the other targets is predicted.")
        warnings.warn(f"{text}; the mean effect of the other targets is predicted.", UserWarning,
                      stacklevel=settings.warnings_stacklevel)  # fmt: skip

    def _batch_names(self) -> list[str]:
        return [str(b) for b in state_registry(self.registry_, KEYS.BATCH).get("categorical_mapping", ["0"])]


def _temperatures(given: Sequence[float] | None, n_genes: int) -> tuple[float, ...]:
    if given is None:
        return (1.0, n_genes / 50) if n_genes > 50 else (1.0,)
    values = tuple(float(t) for t in given)
    if not values or min(values) < 1:
        raise SetupError(f"Temperatures must be 1 or more, got {given}.")
    return values


def _with_preset(preset: str, given: dict[str, Any]) -> dict[str, Any]:
    default = {
        "parametrisation": "gaussian", "effects": "shrunken", "prediction": "transport", "n_hidden": 256,
        "n_embedding": 64, "n_interaction": 8, "init_scale": 0.0, "sigma_min": 0.03, "ema_decay": 0.999, "n_draws": 4,
        "calibrate": True, "n_states": 1000, "generator": "film",
    }  # fmt: skip
    if preset not in ("cpu", "paper"):
        raise unknown_name("preset", preset, ("cpu", "paper"))
    if preset == "paper":
        default = {**default, **_PAPER}
    return {k: default[k] if v is None else v for k, v in given.items()}


def _check_choices(noise_model: Any, chosen: dict[str, Any], injection: str, on_unseen: str) -> None:
    for name, value, known in (
        ("noise_model", noise_model, (None, "zip")),
        ("effects", chosen["effects"], EFFECTS),
        ("prediction", chosen["prediction"], PREDICTIONS),
        ("parametrisation", chosen["parametrisation"], PARAMETRISATIONS),
        ("generator", chosen["generator"], ("film", "per_env")),
        ("injection", injection, ("inject", "mult")),
        ("on_unseen", on_unseen, ("mean", "raise")),
    ):
        if value not in known:
            raise unknown_name(name, str(value), [str(k) for k in known])
    for name in ("n_hidden", "n_embedding", "n_draws", "n_states"):
        if chosen[name] < 1:
            raise SetupError(f"{name} must be at least 1, got {chosen[name]}.")
