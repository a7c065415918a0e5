"""Cells under interventions at any time: roll-outs of the latents and calibrated mean changes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi import settings
from torch import Tensor

from sccausal._errors import SetupError
from sccausal.data import prediction_anndata
from sccausal.models._cells import checked_times, local_seed, registered
from sccausal.models._perturbation import PerturbationAccessor
from sccausal.models.citevae._calibration import interpolated
from sccausal.models.citevae._response import change_at
from sccausal.nn.likelihood import move_counts

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)
_MOST_STEPS = 200


class TimeCourseAccessor(PerturbationAccessor):
    """Predictions over time; ``obs["time_support"]`` says whether a time was measured, between or beyond such."""

    def predict(self, *args: Any, **kwargs: Any) -> AnnData:
        out = super().predict(*args, **kwargs)
        measured = self._model.table_["times"]
        out.obs["time_support"] = _support(out.obs["time"].to_numpy(float), measured)
        beyond = sorted(set(out.obs["time"][out.obs["time_support"] == "beyond"]))
        if beyond:
            warnings.warn(
                f"Time {', '.join(f'{t:g}' for t in beyond)} lies outside of the measured times ({measured[0]:g} to "
                f"{measured[-1]:g}); rows are marked in obs['time_support'].",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        return out

    predict.__doc__ = PerturbationAccessor.predict.__doc__


class TimePredictionMixin:
    """Predictions of :class:`~sccausal.models.CITEVAE`."""

    table_: dict[str, Any]
    response_report_: dict[str, Any]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @property
    def prediction_units(self) -> str:
        """``"counts"`` for counts, otherwise the unit of the data (``"as_given"``)."""
        return "as_given" if self.module.gene_likelihood == "gaussian" else "counts"

    @property
    def perturbation(self) -> TimeCourseAccessor:
        """Predictions of interventions over time; see :class:`~sccausal.models.PerturbationAccessor`."""
        self._require("perturbation", "predicts no interventions (model.perturbation)")
        return TimeCourseAccessor(self)  # type: ignore[arg-type]

    # ------------------------------------------------------------------ cells in and out

    def _predict_cells(
        self,
        adata: AnnData,
        row: np.ndarray,
        *,
        condition: str | None,
        time: float | None,
        n_samples: int,
        seed: int,
        batch_size: int | None,
    ) -> np.ndarray:
        self._check_target(row)
        draws: list[list[np.ndarray]] = [[] for _ in range(n_samples)]
        for tensors in self._make_data_loader(adata, batch_size=batch_size):
            for draw in draws:
                draw.append(self._moved(tensors, row, time, sample=n_samples > 1).cpu().numpy())
        return np.concatenate([np.concatenate(d) for d in draws])

    def rollout(
        self, adata: AnnData | None = None, times: Sequence[float] | float | None = None, *, n_samples: int = 1,
        seed: int = 0, batch_size: int | None = None,
    ) -> AnnData:  # fmt: skip
        """Follow cells to other times without changing what is done to them.

        Works for models without interventions too, to interpolate and extrapolate a time course.

        Parameters
        ----------
        adata
            Cells to start from; default those of the training data.
        times
            Times to predict; default the last measured one.
        n_samples
            Random draws per cell.
        seed
            Seed of the draws.
        batch_size
            Cells per mini-batch.

        Returns
        -------
        AnnData in the schema of predictions, times one after the other, with ``obs["time_support"]``.
        """
        self._check_if_trained(warn=False)
        self.module.eval()
        moments = checked_times(self, float(self.table_["times"][-1]) if times is None else times)  # type: ignore[arg-type]
        blocks, frames, when, draws = [], [], [], []
        key = self.registry_["setup_args"].get("intervention_key")
        with registered(self, adata, as_control=True) as cells, local_seed(seed, self.device), torch.inference_mode():  # type: ignore[arg-type]
            names = cells.obs[key].astype(str).to_numpy() if key in cells.obs else np.full(cells.n_obs, "control")
            for moment in moments:
                for draw in range(n_samples):
                    parts = [
                        self._moved(tensors, None, moment, sample=True).cpu().numpy()
                        for tensors in self._make_data_loader(cells, batch_size=batch_size)
                    ]
                    blocks.append(np.concatenate(parts))
                    frames.append(pd.DataFrame({"intervention": names}, index=cells.obs_names))
                    when.append(np.full(cells.n_obs, moment))
                    draws.append(np.full(cells.n_obs, draw))
        source = pd.concat(frames)
        out = prediction_anndata(
            np.concatenate(blocks), source[[]], pd.DataFrame(index=pd.Index([str(g) for g in self.get_var_names()])),
            interventions=list(source["intervention"]), time=list(np.concatenate(when)),
            sample=list(np.concatenate(draws)), units=self.prediction_units, method=type(self).__name__,
        )  # fmt: skip
        out.obs["time_support"] = _support(out.obs["time"].to_numpy(float), self.table_["times"])
        return out

    def _check_target(self, row: np.ndarray) -> None:
        unseen = np.flatnonzero((row != 0) & ~self.table_["trained"])
        if not len(unseen):
            return
        names = ", ".join(self.codec.targets[j] for j in unseen[:3])
        if self.embedding_kind_ == "onehot":
            raise SetupError(
                f"{names} was not in training, and one-hot features say nothing about unseen targets. Train with "
                "intervention_embedding='coexpression' or with a frame of features (GO, ESM, ...)."
            )
        blank = [j for j in unseen if not bool(self.module.embedding[j].any())]
        if blank:
            logger.warning(
                "%s: no features, because its gene is not measured; the mean effect stands in.",
                ", ".join(self.codec.targets[j] for j in blank[:3]),
            )

    def _moved(self, tensors: dict[str, Tensor], row: np.ndarray | None, time: float | None, *, sample: bool) -> Tensor:
        """Cells at ``time`` under doses ``row``; None keeps the time or the intervention they have."""
        module = self.module
        cells = {k: v.to(module.scale.device) for k, v in module._get_inference_input(tensors).items()}
        if row is not None:
            cells["dose"] = torch.zeros_like(cells["dose"])
        out = module.inference(**cells)
        x, start = cells["x"], (cells["time"] * module.time_unit).squeeze(1).cpu().numpy().astype(float)
        wanted = start if time is None else np.full(len(start), time)
        stops = self._stops(start, wanted)
        before = module.decode(torch.cat([out["c_mean"], out["s_mean"]], 1), out["library"], cells["batch"])
        after = before.clone()
        forward = torch.as_tensor(stops > start + 1e-9, device=x.device)
        if bool(forward.any()):
            gap = torch.as_tensor(stops - start, dtype=x.dtype, device=x.device)[:, None] / module.time_unit
            c, s = self._roll(out["c_mean"], out["s_mean"], out["e"], gap.clamp_min(0.0))
            rolled = module.decode(torch.cat([c, s], 1), out["library"], cells["batch"])
            after = torch.where(forward[:, None], rolled, before)
        shift = torch.as_tensor(self._shift(start, stops), dtype=x.dtype, device=x.device)
        effect = torch.as_tensor(self._effect(row, wanted), dtype=x.dtype, device=x.device)
        if module.gene_likelihood != "gaussian":
            return move_counts(x, before, after * torch.exp(shift + effect), torch.exp(module.spread), sample)
        base = x + (after - before) * module.scale + shift
        if not bool(self.table_["nonnegative"]):
            return base + effect
        level = torch.as_tensor(self._level(wanted), dtype=x.dtype, device=x.device).clamp_min(1e-6)
        moved = (base != x).any(1, keepdim=True)
        base = torch.where(moved, self._as_measured(base, start, stops).clamp_min(0), x)
        # what goes down goes down in proportion, so that no value leaves the range and the mean is exact
        return torch.where(effect > 0, base + effect, base * (1 + effect / level).clamp_min(0.0))

    def _stops(self, start: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Time to which each cell is rolled.

        Between two measured times cells do not change in step: the share of the way is the share of the cells that
        have gone all of it. (Cells half-way between two states are rarely seen; see the page of the model.)
        """
        times, stops = self.table_["times"], wanted.copy()
        at = np.searchsorted(times, wanted - 1e-9)
        inner = (at > 0) & (at < len(times)) & (wanted > start + 1e-9)
        inner &= np.abs(times[np.minimum(at, len(times) - 1)] - wanted) > 1e-9
        if inner.any():
            low, high = times[at[inner] - 1], times[at[inner]]
            gone = torch.rand(int(inner.sum())).numpy() < (wanted[inner] - low) / (high - low)
            stops[inner] = np.where(gone, high, np.maximum(low, start[inner]))
        return stops

    def _as_measured(self, base: Tensor, start: np.ndarray, stops: np.ndarray) -> Tensor:
        """Rolled values (n, m), the distribution of each gene brought to that of measured control cells."""
        if "rolled" not in self.table_:
            return base
        times, out = self.table_["times"], base.cpu().numpy()
        for a, b in set(zip(start.tolist(), stops.tolist(), strict=True)):
            j = int(np.abs(times - b).argmin())
            if b <= a or abs(times[j] - b) > 1e-9:
                continue
            k, rows = int(np.abs(times - a).argmin()), (start == a) & (stops == b)
            knots, levels = self.table_["rolled"][k, j], self.table_["measured"][j]
            for g in range(out.shape[1]):
                out[rows, g] = np.interp(out[rows, g], knots[:, g], levels[:, g])
        return torch.as_tensor(out, dtype=base.dtype, device=base.device)

    def _roll(self, c: Tensor, s: Tensor, e: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Draw both blocks after ``gap`` (n, 1), in steps of at most one unit of time."""
        n_steps = int(min(max(1, np.ceil(float(gap.max()))), _MOST_STEPS))
        moving = gap > 0
        for _ in range(n_steps):
            c_next, s_next = self.module.step(c, s, (gap / n_steps).clamp_min(1e-4), e, sample=True)
            c, s = torch.where(moving, c_next, c), torch.where(moving, s_next, s)
        return c, s

    # ------------------------------------------------------------------ what was calibrated

    def _level(self, wanted: np.ndarray) -> np.ndarray:
        return interpolated(self.table_["times"], self.table_["control"], wanted)

    def _shift(self, start: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """What is missing to the control mean of the wanted time after a roll-out from the time of a cell (n, m)."""
        table = self.table_
        out = np.zeros((len(start), table["control"].shape[1]), dtype=np.float32)
        for a, b in set(zip(start.tolist(), wanted.tolist(), strict=True)):
            rows = (start == a) & (wanted == b)
            if b < a:  # no roll-out leads back: cells move with the mean of control cells
                out[rows] = self._level(np.array([b]))[0] - self._level(np.array([a]))[0]
            elif b > a:
                k = int(np.abs(table["times"] - a).argmin())
                out[rows] = interpolated(table["times"], table["offset"][k], np.array([b]))[0]
        return out

    def _effect(self, row: np.ndarray | None, wanted: np.ndarray) -> np.ndarray:
        out = np.zeros((len(wanted), self.table_["control"].shape[1]), dtype=np.float32)
        if row is None or not row.any():
            return out
        rate = float(self.module.responsive.log_rate.exp().median() / self.module.time_unit)
        for t in set(wanted.tolist()):
            out[wanted == t] = change_at(self.table_, row, t, rate)
        return out


def _support(time: np.ndarray, measured: np.ndarray) -> Any:
    near = np.abs(time[:, None] - measured).min(1) < 1e-6 * max(1.0, np.abs(measured).max())
    kind = np.where((time < measured[0]) | (time > measured[-1]), "beyond", "between")
    kind = np.where(near, "measured", kind)
    return pd.Categorical(kind, categories=["measured", "between", "beyond"])
