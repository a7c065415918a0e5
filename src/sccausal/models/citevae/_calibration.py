"""What is learned after training: mean effects over time, and what roll-outs of control cells miss."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sccausal._errors import SetupError
from sccausal.data import KEYS
from sccausal.models._cells import local_seed
from sccausal.models.citevae._response import Profiles, Response
from sccausal.models.citevae._start import following, gene_loadings

logger = logging.getLogger(__name__)
_SAMPLE = 300
_N_QUANTILES = 40


class CalibrationMixin:
    """Calibration of :class:`~sccausal.models.CITEVAE` on its training cells."""

    table_: dict[str, Any]
    response_report_: dict[str, Any]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

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
        """Quantiles of control cells at each time (K, q, m), and of those rolled there from earlier ones."""
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


def interpolated(times: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
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
    return interpolated(times[seen], level[seen], times)


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
