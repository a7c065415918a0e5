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
from sccausal.data import KEYS, prediction_anndata
from sccausal.models._cells import checked_times, local_seed, registered
from sccausal.models._perturbation import PerturbationAccessor
from sccausal.models.citevae._response import Profiles, Response, change_at
from sccausal.models.citevae._start import following, gene_loadings
from sccausal.nn.likelihood import move_counts

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)
_SAMPLE = 300
_MOST_STEPS = 200
_N_QUANTILES = 40


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
        """Rolled values (n, m) with each gene's distribution brought to that of measured control cells, rank by rank."""
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
        return _interpolated(self.table_["times"], self.table_["control"], wanted)

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
                out[rows] = _interpolated(table["times"], table["offset"][k], np.array([b]))[0]
        return out

    def _effect(self, row: np.ndarray | None, wanted: np.ndarray) -> np.ndarray:
        out = np.zeros((len(wanted), self.table_["control"].shape[1]), dtype=np.float32)
        if row is None or not row.any():
            return out
        rate = float(self.module.responsive.log_rate.exp().median() / self.module.time_unit)
        for t in set(wanted.tolist()):
            out[wanted == t] = change_at(self.table_, row, t, rate)
        return out

    # ------------------------------------------------------------------ calibration

    @torch.inference_mode()
    def _calibrate(self) -> None:
        """Learn mean effects over time, and what roll-outs of control cells miss."""
        rows = self._training_rows()
        dose = self._doses()[rows]
        time = np.ravel(self.adata_manager.get_from_registry(KEYS.TIME)).astype(float)[rows]
        values = self._values(rows)
        control = ~(dose != 0).any(1)
        if not control.any():
            raise SetupError("The training cells hold no control cell.")
        times = np.unique(time)
        level, count = _means(values[control], time[control], times)
        level = _filled(times, level, count)
        counts = self.module.gene_likelihood != "gaussian"
        rest = values[control] - level[np.searchsorted(times, time[control])]
        pseudo = 1e4 / values.shape[1] * 1e-2
        own = self._own_genes()
        response = Response(self._features(rest, own), own, self._following(rest, own), self._response_axes())
        profiles = _profiles(values, dose, time, times, level, rest.var(0), pseudo if counts else None)
        table: dict[str, np.ndarray] = {}
        if len(profiles.dose):
            response.fit(profiles)
            table = response.table()
            self.response_report_ = {
                k: np.asarray(v).tolist() if not isinstance(v, bool) else v for k, v in response.report.items()
            }
        else:
            n, m = dose.shape[1], values.shape[1]
            table = {
                "times": times, "effect": np.zeros((n, len(times), m), np.float32), "trained": np.zeros(n, bool),
                "combined_dose": np.zeros((0, n), np.float32), "combined": np.zeros((0, len(times), m), np.float32),
            }  # fmt: skip
        table["control"] = (np.log(level + pseudo) if counts else level).astype(np.float32)
        table["nonnegative"] = np.asarray(bool(values.min() >= 0))
        table["offset"] = np.zeros((len(times), len(times), values.shape[1]), np.float32)
        self.table_ = table
        table["offset"] = self._offsets(rows[control], time[control], times)
        if bool(table["nonnegative"]) and not counts:
            table |= self._distributions(rows[control], time[control], times)

    def _offsets(self, rows: np.ndarray, time: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Control mean at each later time minus that of roll-outs from each earlier one (K, K, m)."""
        out = np.zeros_like(self.table_["offset"])
        rng = np.random.default_rng(0)
        counts = self.module.gene_likelihood != "gaussian"
        with local_seed(0, self.device):
            for a, start in enumerate(times):
                here = rows[time == start]
                if not len(here):
                    continue
                here = np.sort(rng.choice(here, min(len(here), _SAMPLE), replace=False))
                tensors = next(iter(self._make_data_loader(self.adata, indices=here, batch_size=len(here))))
                measured, own = tensors[KEYS.X].cpu().numpy(), self._values(here)
                for b in range(a + 1, len(times)):
                    reached = self._moved(tensors, None, float(times[b]), sample=False).cpu().numpy()
                    moved = self._mean_level(reached, counts) - self._mean_level(measured, counts)
                    out[a, b] = self.table_["control"][b] - self._mean_level(own, counts) - moved
        return out

    def _distributions(self, rows: np.ndarray, time: np.ndarray, times: np.ndarray) -> dict[str, np.ndarray]:
        """Quantiles of control cells at each time (K, q, m), and of those rolled there from earlier ones (K, K, q, m)."""
        levels = (np.arange(_N_QUANTILES) + 0.5) / _N_QUANTILES
        m = self.module.n_genes
        measured = np.zeros((len(times), _N_QUANTILES, m), np.float32)
        rolled = np.zeros((len(times), len(times), _N_QUANTILES, m), np.float32)
        rng = np.random.default_rng(0)
        # unclipped values have no ties
        self.table_["nonnegative"] = np.asarray(False)
        with local_seed(0, self.device):
            for a, start in enumerate(times):
                here = rows[time == start]
                if not len(here):
                    continue
                here = np.sort(rng.choice(here, min(len(here), 2 * _SAMPLE), replace=False))
                tensors = next(iter(self._make_data_loader(self.adata, indices=here, batch_size=len(here))))
                measured[a] = np.quantile(tensors[KEYS.X].cpu().numpy(), levels, axis=0)
                for b in range(a + 1, len(times)):
                    reached = self._moved(tensors, None, float(times[b]), sample=False).cpu().numpy()
                    rolled[a, b] = np.quantile(reached, levels, axis=0)
        self.table_["nonnegative"] = np.asarray(True)
        # without control cells at some time there is nothing to compare with: values stay as they are
        return {"measured": measured, "rolled": rolled} if np.isin(times, time).all() else {}

    @staticmethod
    def _mean_level(values: np.ndarray, counts: bool) -> np.ndarray:
        if not counts:
            return values.mean(0)
        shares = values * (1e4 / np.maximum(values.sum(1, keepdims=True), 1e-4))
        return np.log(shares.mean(0) + 1e4 / values.shape[1] * 1e-2)

    def _features(self, rest: np.ndarray, own: np.ndarray) -> np.ndarray:
        if self.embedding_kind_ == "coexpression":
            return gene_loadings(rest, own, min(20, rest.shape[1]))
        return self.module.embedding.cpu().numpy().astype(float)

    def _following(self, rest: np.ndarray, own: np.ndarray) -> np.ndarray | None:
        # part of what coexpression says; features that a user gives stand for themselves
        return following(rest, own) if self.embedding_kind_ == "coexpression" and len(own) else None

    def _response_axes(self) -> np.ndarray | None:
        """Orthonormal directions in which the decoder moves genes (m, k), in the unit of effects; None if all are."""
        module = self.module
        if module.n_genes <= 2 * (module.n_invariant + module.n_responsive):
            return None
        z = torch.zeros(1, module.n_invariant + module.n_responsive, device=module.scale.device)
        with torch.inference_mode(False):
            jacobian = torch.autograd.functional.jacobian(lambda v: module.decoder(v).sum(0), z.clone())[:, 0]
        unit = module.scale[:, None] if module.gene_likelihood == "gaussian" else 1.0
        return np.linalg.qr((jacobian * unit).detach().cpu().numpy().astype(float))[0]


def _support(time: np.ndarray, measured: np.ndarray) -> Any:
    near = np.abs(time[:, None] - measured).min(1) < 1e-6 * max(1.0, np.abs(measured).max())
    kind = np.where((time < measured[0]) | (time > measured[-1]), "beyond", "between")
    kind = np.where(near, "measured", kind)
    return pd.Categorical(kind, categories=["measured", "between", "beyond"])


def _interpolated(times: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Rows of ``values`` (K, m) at other times, constant outside of the measured range."""
    if len(times) == 1:
        return np.repeat(values, len(wanted), 0)
    at = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    share = np.clip((wanted - times[at - 1]) / (times[at] - times[at - 1]), 0, 1)[:, None]
    return (1 - share) * values[at - 1] + share * values[at]


def _means(values: np.ndarray, time: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.searchsorted(times, time)
    count = np.bincount(at, minlength=len(times))
    total = np.zeros((len(times), values.shape[1]))
    np.add.at(total, at, values)
    return total / np.maximum(count, 1)[:, None], count


def _filled(times: np.ndarray, level: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Means of times without control cells, from the neighbouring times."""
    if (count > 0).all():
        return level
    missing = ", ".join(f"{t:g}" for t in times[count == 0])
    logger.warning("No control cell at time %s; the control mean there is interpolated.", missing)
    seen = count > 0
    return _interpolated(times[seen], level[seen], times)


def _profiles(
    values: np.ndarray,
    dose: np.ndarray,
    time: np.ndarray,
    times: np.ndarray,
    level: np.ndarray,
    variance: np.ndarray,
    pseudo: float | None,
) -> Profiles:
    rows, code = np.unique(dose, axis=0, return_inverse=True)
    code = code.ravel()
    treated = np.flatnonzero((rows != 0).any(1))
    change = np.full((len(treated), len(times), values.shape[1]), np.nan)
    n_cells = np.zeros((len(treated), len(times)), int)
    for c, k in enumerate(treated):
        own = code == k
        mean, count = _means(values[own], time[own], times)
        n_cells[c] = count
        if pseudo is None:
            found = mean - level
        else:
            found = np.log(np.maximum(mean, 0) + pseudo) - np.log(level + pseudo)
        change[c, count > 0] = found[count > 0]
    if pseudo is not None:
        variance = variance / (level.mean(0) + pseudo) ** 2
    return Profiles(rows[treated].astype(float), times, change, n_cells, variance)
