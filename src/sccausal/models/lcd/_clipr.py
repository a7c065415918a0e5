"""From a trained LCD to points of rest, dynamics with directions, and direct effects between genes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sccausal._errors import InputDataError, NumericalError, SetupError
from sccausal.models._cells import local_seed
from sccausal.nn.score import fixed_points, score, stationary_path

if TYPE_CHECKING:
    from sccausal.grn import CliprResult, Network
    from sccausal.grn._clipr_result import Estimator

Units = Literal["state", "standardised"]
_MOST_STEPS = 200_000
_SIGMA = 0.1  # noise at which drifts are read, in standard deviations; below it a score is learned poorly


class CliprMixin:
    """Direct effects of :class:`~sccausal.models.LCD`."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @torch.inference_mode()
    def fixed_points(
        self, interventions: Sequence[Any] | str | None = None, *, kind: Literal["mean", "mode"] = "mean", n: int = 500
    ) -> pd.DataFrame:
        """Where cells rest under interventions.

        Parameters
        ----------
        interventions
            As in ``model.perturbation.predict``; default control and each single target that was seen.
        kind
            ``"mode"``: end of the noise-free dynamics, as in the paper (for data with many zeros that is the spike at
            zero); ``"mean"``: mean of the stationary law, over ``n`` draws with common noise. Equal for linear
            dynamics.
        n
            Draws for ``"mean"``.

        Returns
        -------
        States (interventions x genes), of the average batch.
        """
        self._check_if_trained(warn=False)
        self._require_drift()
        if kind not in ("mean", "mode"):
            raise SetupError(f"kind is 'mean' or 'mode', got {kind!r}.")
        module = self.module
        module.eval()
        rows = self._rows_of(interventions)
        found = []
        for row in rows:
            dose = torch.as_tensor(row, dtype=torch.float32, device=module.scale.device)
            denoise = module.denoiser(dose)
            if kind == "mode":
                z = fixed_points(denoise, torch.zeros(1, module.n_genes, device=dose.device), module.levels)[0]
            else:
                with local_seed(0, module.scale.device):  # common noise: differences are far less noisy than means
                    z = self._drawn(dose, torch.full((n,), len(module.drift.batch), device=dose.device)).mean(0)
            found.append(self._centre(dose) + module.scale * z)
        values = torch.stack(found).double().cpu().numpy()
        return pd.DataFrame(values, index=[self.codec.label(r) for r in rows], columns=self._gene_names())

    @torch.inference_mode()
    def drift(self, x: np.ndarray, intervention: Any, *, sigma: float = _SIGMA) -> np.ndarray:
        r"""Drift :math:`\nabla \log p(x | c)` of the paper's diffusion :math:`dx = f\,dt + \sqrt 2\,dW` (n, genes).

        Parameters
        ----------
        x
            States (n, genes).
        intervention
            One intervention.
        sigma
            Noise, in standard deviations of each gene, at which the score is read.
        """
        self._check_if_trained(warn=False)
        self._require_drift()
        x = np.atleast_2d(np.asarray(x, dtype=np.float32))
        if x.shape[1] != self.module.n_genes or not np.isfinite(x).all():
            raise InputDataError(f"States must be finite, (n, {self.module.n_genes}); got {x.shape}.")
        dose = self._dose(intervention)
        z = (torch.as_tensor(x, device=dose.device) - self._centre(dose)) / self.module.scale
        # a score has the inverse unit of the state
        return (score(self.module.denoiser(dose), z, sigma) / self.module.scale).cpu().numpy()

    def clipr(
        self,
        interventions: Sequence[Any] | None = None,
        *,
        estimator: Estimator = "response",
        reference: Literal["control", "origin"] = "control",
        kind: Literal["mean", "mode"] = "mean",
        sigma: float = _SIGMA,
        units: Units | None = None,
        n_bootstrap: int = 0,
        seed: int = 0,
        **kwargs: Any,
    ) -> CliprResult:
        """Direct effects between genes; see :func:`sccausal.grn.clipr`.

        Parameters
        ----------
        interventions
            Interventions to use; default all single targets that were seen. Targets that are no genes are left out.
        estimator
            ``"response"`` applies the identifying formula to the points of rest; ``"drift"`` is the paper's, whose
            matrix is nearly symmetric because a score has no direction; ``"drift+targets"`` adds the direction.
        reference
            For ``"drift"``: the point at which drifts are read, ``"control"`` (its point of rest) or ``"origin"``
            (state 0, as in the paper; far from the cells, where a network knows little).
        kind
            Points of rest, as in :meth:`fixed_points`.
        sigma
            Noise at which drifts are read.
        units
            ``"state"``, or ``"standardised"``: effects per standard deviation, and for the drift forms diffusion in
            proportion to the variance of each gene. Default ``"standardised"`` for ``"drift+targets"``, else
            ``"state"``.
        n_bootstrap, seed
            Draws of a parametric bootstrap from the sampling errors of the effects, and its seed.
        **kwargs
            Further arguments of :func:`sccausal.grn.clipr`.
        """
        from sccausal.grn._clipr import clipr

        if reference not in ("control", "origin"):
            raise SetupError(f"reference is 'control' or 'origin', got {reference!r}.")
        scale = self._scale(units or ("standardised" if estimator == "drift+targets" else "state"))
        rows = self._rows_of(interventions)
        rows = rows[(rows != 0).any(axis=1)]
        labels = [self.codec.label(r) for r in rows]
        targets = {
            k: tuple(self.codec.targets[t] for t in np.flatnonzero(r)) for k, r in zip(labels, rows, strict=True)
        }
        control, genes = self.codec.control, self._gene_names()
        states = self.fixed_points([control, *labels], kind=kind)
        responses = (states.loc[labels] - states.loc[control]) / scale
        errors = np.sqrt(np.square(rows) @ np.square(self.module.singles_error.double().cpu().numpy())) / scale
        given: dict[str, Any] = {"standard_errors": pd.DataFrame(errors, index=labels, columns=genes), **kwargs}
        if estimator == "drift":
            point = states.loc[control] if reference == "control" else pd.Series(0.0, index=genes)
            drifts = np.stack([self.drift(point.to_numpy(), k, sigma=sigma)[0] for k in labels]).astype(float)
            if reference == "control":  # at its point of rest the control drift is zero but for the noise of a network
                drifts -= self.drift(point.to_numpy(), control, sigma=sigma)[0]
            else:
                responses = states.loc[labels] / scale
                given["reference_state"] = point / scale
            given["drifts"] = pd.DataFrame(drifts * scale, index=labels, columns=genes)
            given.setdefault("tikhonov", 1e-3)
        elif estimator == "drift+targets":
            given["precision"] = pd.DataFrame(self._precision() * np.outer(scale, scale), index=genes, columns=genes)
            given.setdefault("tikhonov", 1e-6)
        return clipr(responses, targets=targets, estimator=estimator, n_bootstrap=n_bootstrap, seed=seed, **given)

    @torch.inference_mode()
    def simulate(
        self,
        x0: np.ndarray,
        intervention: Any,
        times: Sequence[float],
        *,
        directed: bool = True,
        units: Units = "standardised",
        sigma: float = _SIGMA,
        step: float = 0.01,
        noise: bool = True,
        seed: int = 0,
    ) -> np.ndarray:
        r"""Follow states over time, :math:`dz = (I + Q)\nabla\log p(z|c)\,dt + \sqrt 2\,dW`.

        Q is antisymmetric: it leaves the stationary law as it is, that of the sampler at noise ``sigma``, and gives
        the dynamics the directions that the targets of the perturbations tell.

        Parameters
        ----------
        x0
            States at time 0 (n, genes).
        intervention
            Intervention that acts from then on.
        times
            Times to report, rising.
        directed
            ``False`` sets Q = 0, the reversible dynamics of the score.
        units
            ``"standardised"``: z are standardised states, diffusion is in proportion to the variance of each gene, and
            a gene by itself forgets its state at rate 1. ``"state"``: z are the states, diffusion is the same for all;
            genes of small variance are then fast, and ``step`` has to be small.
        sigma
            Noise at which the score is read.
        step
            Largest step in time; it is lowered where the dynamics would be unstable.
        noise
            Whether there is a random part.
        seed
            Seed.

        Returns
        -------
        States (times, n, genes).
        """
        self._check_if_trained(warn=False)
        self._require_drift()
        moments = np.atleast_1d(np.asarray(times, dtype=float))
        if not np.isfinite(moments).all() or (moments < 0).any() or (np.diff(moments) < 0).any() or step <= 0:
            raise SetupError(
                f"Times must be finite, not negative and rising, and step positive; got {moments}, {step}."
            )
        x = np.atleast_2d(np.asarray(x0, dtype=np.float32))
        if x.shape[1] != self.module.n_genes or not np.isfinite(x).all():
            raise InputDataError(f"States must be finite, (n, {self.module.n_genes}); got {x.shape}.")
        module, dose = self.module, self._dose(intervention)
        unit = torch.as_tensor(self._scale("standardised"), dtype=torch.float32, device=dose.device)
        # states are followed in standard deviations; `slow` is the diffusion there
        slow = torch.ones_like(unit) if units == "standardised" else 1 / unit
        turn = torch.eye(module.n_genes, device=dose.device)
        if directed:
            turn = turn + torch.as_tensor(self._antisymmetric(units), dtype=torch.float32, device=dose.device)
        turn = slow[:, None] * turn * slow
        step = min(step, self._stable_step(turn, sigma))
        if moments[-1] / step > _MOST_STEPS:
            raise NumericalError(
                f"The directed dynamics are so fast that {moments[-1]:g} units of time need steps of {step:.1e}: the "
                "targets do not fit the responses (see identifiability_report()), or genes differ much in variance. "
                "Use directed=False, units='standardised' or shorter times."
            )
        denoise, centre = module.denoiser(dose), self._centre(dose)

        def drift(z: Tensor) -> Tensor:
            return score(denoise, z, sigma) @ turn.T

        z = (torch.as_tensor(x, device=dose.device) - centre) / module.scale
        with local_seed(seed, dose.device):
            path = stationary_path(drift, z, torch.as_tensor(moments), step=step, noise=slow if noise else None)
        return (centre + module.scale * path).cpu().numpy()

    def _stable_step(self, turn: Tensor, sigma: float) -> float:
        """Step of which Euler's method stays well within its stable region around the control state."""
        covariance = self.module.gaussian.covariance().double().cpu().numpy()
        rates = np.linalg.eigvals(
            turn.double().cpu().numpy() @ np.linalg.inv(covariance + sigma**2 * np.eye(len(covariance)))
        )
        return float(0.2 * np.min(np.maximum(rates.real, 1e-9) / np.abs(rates) ** 2))

    def _antisymmetric(self, units: Units) -> np.ndarray:
        """Q (d, d) from the targets of the single perturbations."""
        from sccausal.grn import directed_drift

        place = {g: j for j, g in enumerate(self._gene_names())}
        names = [t for t in self._seen_targets() if t in place]
        if not names:
            raise InputDataError(
                "No seen target is a measured gene, so nothing is known of directions; directed=False."
            )
        scale = self._scale(units)
        states = self.fixed_points([self.codec.control, *names])
        responses = (states.loc[names] - states.loc[self.codec.control]).to_numpy() / scale
        acts = np.zeros(responses.shape, dtype=bool)
        acts[np.arange(len(names)), [place[n] for n in names]] = True
        precision = self._precision() * np.outer(scale, scale)
        drift = directed_drift(precision, responses, acts, damp=1e-6)
        return -drift @ np.linalg.inv(precision) - np.eye(len(scale))

    def _precision(self) -> np.ndarray:
        """Inverse covariance (d, d) of control states in their own unit."""
        scale = self._scale("standardised")
        inverse = np.linalg.inv(self.module.gaussian.covariance().double().cpu().numpy())
        return inverse / np.outer(scale, scale)

    def _scale(self, units: Units) -> np.ndarray:
        if units not in ("state", "standardised"):
            raise SetupError(f"units is 'state' or 'standardised', got {units!r}.")
        scale = self.module.scale.double().cpu().numpy()
        return scale if units == "standardised" else np.ones_like(scale)

    def _network(self, *, estimator: Estimator = "response", fdr: float | None = None, **kwargs: Any) -> Network:
        """Direct effects as a network.

        Parameters
        ----------
        estimator
            As in :meth:`clipr`.
        fdr
            Only edges with a q-value of at most this.
        **kwargs
            Further arguments of :meth:`clipr`.
        """
        if fdr is not None:
            kwargs.setdefault("n_bootstrap", 100)
        return self.clipr(estimator=estimator, **kwargs).to_network(fdr=fdr)

    # ------------------------------------------------------------------ parts

    def _centre(self, dose: Tensor) -> Tensor:
        return self.module.average_level + self.module.change(dose.unsqueeze(0))[0]

    def _dose(self, intervention: Any) -> Tensor:
        rows = self.codec.parse_many([intervention])
        return torch.as_tensor(rows[0], dtype=torch.float32, device=self.module.scale.device)

    def _gene_names(self) -> list[str]:
        return [str(g) for g in self.get_var_names()]

    def _seen_targets(self) -> list[str]:
        seen = self.module.seen.cpu().numpy()
        return [t for t, s in zip(self.codec.targets, seen, strict=True) if s]

    def _rows_of(self, interventions: Sequence[Any] | str | None) -> np.ndarray:
        wanted = [self.codec.control, *self._seen_targets()] if interventions is None else interventions
        return self.codec.parse_many(wanted)
