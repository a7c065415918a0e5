"""What a trained LCD gives: cells under interventions, draws, points of rest, dynamics, direct effects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sccausal._errors import InputDataError, SetupError, unknown_name
from sccausal.data import KEYS, prediction_anndata
from sccausal.models._cells import local_seed
from sccausal.models.lcd._clipr import CliprMixin
from sccausal.models.lcd._statistics import batch_levels, dense
from sccausal.models.lcd._transport import encode, move, transport_levels
from sccausal.nn.levels import noise_levels
from sccausal.nn.likelihood import move_counts
from sccausal.nn.score import annealed_langevin, heun

if TYPE_CHECKING:
    from anndata import AnnData

SAMPLERS = ("heun", "annealed_langevin")
PREDICTIONS = ("transport", "shift", "sample")
_CHUNK = 2048


class OutputsMixin(CliprMixin):
    """Outputs of :class:`~sccausal.models.LCD`."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    # ------------------------------------------------------------------ cells of a query

    @contextmanager
    def _met(self, adata: AnnData) -> Iterator[None]:
        """Levels of batches the model has not seen, from their control cells; a place to keep what cells flow to."""
        manager = self.get_anndata_manager(adata, required=True)
        batch = np.ravel(manager.get_from_registry(KEYS.BATCH)).astype(int)
        if self.align_queries_:
            batch = np.full_like(batch, len(self.module.level))
        new = np.unique(batch[batch >= len(self.module.level)])
        self._query_levels: dict[int, Tensor] = {}
        if len(new):
            dose = np.asarray(manager.get_from_registry(KEYS.INTERVENTION))
            X = dense(manager.get_from_registry(KEYS.X))
            control = ~(dose != 0).any(axis=1)
            if self.module.noise is not None:
                X = numpy_states(self.module, X)
            for b in new:
                own = batch == b
                used = own & control if (own & control).any() else own
                found = batch_levels(X[used], np.zeros(used.sum(), int), np.ones(used.sum(), bool), 1)[0]
                # few cells say little about their batch
                weight = used.sum() / (used.sum() + 5.0)
                average = self.module.average_level.cpu().numpy()
                level = weight * found + (1 - weight) * average
                self._query_levels[int(b)] = torch.as_tensor(
                    level, dtype=torch.float32, device=self.module.scale.device
                )
        self._encoded: dict[int, tuple[Tensor, Tensor]] = {}
        try:
            yield
        finally:
            self._query_levels, self._encoded = {}, {}

    def _level(self, batch: Tensor) -> Tensor:
        """Control level (n, d) of the batches of cells, new ones included."""
        known = self.module.level.detach()
        out = known[batch.clamp_max(len(known) - 1)].clone()
        for b, level in getattr(self, "_query_levels", {}).items():
            out[batch == b] = level
        return out

    # ------------------------------------------------------------------ prediction

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
        self._require_drift()
        self._warn_unseen(row)
        dose = torch.as_tensor(row, dtype=torch.float32, device=self.module.scale.device)
        # drawn for all cells at once, so that a cell's draw does not depend on the size of mini-batches
        rng = np.random.default_rng(seed)
        draws: list[list[np.ndarray]] = [[] for _ in range(n_samples)]
        starts = list(self._make_data_loader(adata, batch_size=batch_size or _CHUNK))
        for draw in draws:
            for k, tensors in enumerate(starts):
                u = rng.random((len(tensors[KEYS.X]), self.module.n_genes), dtype=np.float32)
                draw.append(self._moved(tensors, dose, torch.as_tensor(u), k).cpu().numpy())
        return np.concatenate([np.concatenate(d) for d in draws])

    def _moved(self, tensors: dict[str, Tensor], dose: Tensor, u: Tensor, key: int) -> Tensor:
        module = self.module
        cells = module._get_inference_input(tensors)
        x, batch = cells["x"].to(dose.device), cells["batch"].to(dose.device)
        u = u.to(dose.device)
        if self.align_queries_:
            batch = torch.full_like(batch, len(module.level))
        if not bool((dose != 0).any()):
            return x
        level = self._level(batch)
        change = module.change(dose.unsqueeze(0))
        if module.noise is not None:
            return self._moved_counts(x, level, dose, batch, u, key)
        if self.prediction_ == "sample":
            return level + change + module.scale * self._drawn(dose, batch)
        change = change + self._shared(batch)
        shape = self._shape((x - level) / module.scale, dose, batch, key) if self.prediction_ == "transport" else 0.0
        spike = module.has_zeros
        return move(x, level, change + module.scale * shape, spike, module.positive, module.tail, u)

    def _shared(self, batch: Tensor) -> Tensor:
        """Correction (n, d) of the error of the control mean, which cells of the model's own batches carry with them.

        Effects are measured from the control cells of training. Source cells of these batches are those cells, as a
        rule, and start from their mean with its error; cells of other batches have an error of their own.
        """
        own = (batch < len(self.module.level)).unsqueeze(1)
        return own * self.module.shared

    def _moved_counts(self, x: Tensor, level: Tensor, dose: Tensor, batch: Tensor, u: Tensor, key: int) -> Tensor:
        """Counts of the same cells at the rates of their states under the intervention."""
        module = self.module
        noise = module.noise
        change = module.change(dose.unsqueeze(0))
        change = change + self._shared(batch)
        state = self._posterior(x, batch)
        shape = 0.0
        if self.prediction_ == "transport":
            shape = self._shape((state - level) / module.scale, dose, batch, key)
        after = state + change + module.scale * shape
        kept = 1 - noise.pi
        before_rate, after_rate = kept * noise.rate(state), kept * noise.rate(after)
        ratio = (after_rate / before_rate).clamp_max(1.0)
        gain = move_counts(x, before_rate, after_rate, torch.full_like(noise.pi, 1e3), False) - x * ratio
        # one uniform number decides on each count, so that interventions are compared under the same noise
        thinned = torch.floor(x * ratio + u)
        return torch.where(ratio < 1, torch.minimum(thinned, x), x + torch.floor(gain.clamp_min(0) + u))

    def _posterior(self, x: Tensor, batch: Tensor) -> Tensor:
        """Expected states of control cells, by weighting draws of the generator."""
        module = self.module
        out = torch.empty_like(x)
        zero = torch.zeros(module.n_targets, device=x.device)
        for b in torch.unique(batch):
            own = batch == b
            place = b.clamp_max(len(module.level) - 1)
            level = self._level(b.reshape(1))[0]
            states = module.noise.states(level, zero, place, 2000, module.environment(zero, place))
            out[own] = module.noise.posterior_state(x[own], states, max(module.noise.temperatures))
        return out

    def _shape(self, z: Tensor, dose: Tensor, batch: Tensor, key: int) -> Tensor:
        """What the intervention does to standardised cells (n, d) beyond the shift of their mean.

        Cells flow to noise under control and back under the intervention :cite:p:`Su2023`; what flows back under
        control is subtracted, so that errors of the solver cancel and control cells stay where they are.
        """
        module = self.module
        levels = transport_levels(float(module.levels[-1]), float(module.levels[0]), z)
        known = self._encoded if hasattr(self, "_encoded") else {}
        noise, back = known.get(key, (torch.empty_like(z), torch.empty_like(z)))
        fresh = key not in known
        out = torch.empty_like(z)
        last = len(module.drift.batch) - 1
        zero = torch.zeros_like(dose)
        for b in torch.unique(batch):
            own = batch == b
            place = None if int(b) > last else b
            if fresh:
                noise[own], back[own] = encode(module.denoiser(zero, place), z[own], levels)
            out[own] = heun(module.denoiser(dose, place), noise[own], levels) - back[own]
        known[key] = (noise, back)
        return out

    def _drawn(self, dose: Tensor, batch: Tensor, sampler: str = "heun", **kwargs: Any) -> Tensor:
        """Standardised states (n, d) drawn from the law of the intervention in the batches of cells."""
        module = self.module
        out = torch.empty(len(batch), module.n_genes, device=dose.device)
        last = len(module.drift.batch) - 1
        for b in torch.unique(batch):
            own = batch == b
            denoise = module.denoiser(dose, None if int(b) > last else b)
            n = int(own.sum())
            if sampler == "heun":
                levels = noise_levels(
                    int(kwargs.get("n_levels", 18)), float(module.levels[-1]), float(module.levels[0]), spacing="edm"
                ).to(dose)
                start = torch.randn(n, module.n_genes, device=dose.device) * float(levels[0])
                out[own] = heun(denoise, start, levels)
            else:
                start = torch.randn(n, module.n_genes, device=dose.device)
                out[own] = annealed_langevin(
                    denoise, start, module.levels, n_steps=int(kwargs.get("n_steps", 500)),
                    step=float(kwargs.get("step", 0.01)),
                )  # fmt: skip
        return out

    @torch.inference_mode()
    def sample(
        self,
        interventions: Sequence[Any] | str | None = None,
        n: int = 1000,
        *,
        batch: str | None = None,
        sampler: str = "heun",
        seed: int = 0,
        **kwargs: Any,
    ) -> AnnData:
        """Draw cells from the stationary law under interventions, without source cells.

        Parameters
        ----------
        interventions
            As in ``model.perturbation.predict``; default each single target.
        n
            Cells per intervention.
        batch
            Batch to draw in; default the batches in turn.
        sampler
            ``"heun"`` (probability flow, 36 calls of the network by default) or ``"annealed_langevin"`` (of the paper,
            15 000 calls).
        seed
            Seed of the draws.
        **kwargs
            ``n_levels`` for ``"heun"``; ``n_steps`` per level and ``step`` for Langevin.

        Returns
        -------
        AnnData in the prediction schema; ``obs["source_cell"]`` numbers the draws. States for data without counts
        (unclipped: they may be negative), counts otherwise.
        """
        self._check_if_trained(warn=False)
        self._require_drift()
        if sampler not in SAMPLERS:
            raise unknown_name("sampler", sampler, SAMPLERS)
        if n < 1:
            raise SetupError(f"n must be at least 1, got {n}.")
        unknown = set(kwargs) - ({"n_levels"} if sampler == "heun" else {"n_steps", "step"})
        if unknown:
            raise unknown_name("argument", sorted(unknown)[0], ("n_levels", "n_steps", "step"), "sample")
        module, device = self.module, self.module.scale.device
        module.eval()
        rows = self.codec.parse_many(list(self.codec.targets) if interventions is None else interventions)
        names = self._batch_names()
        if batch is not None and str(batch) not in names:
            raise unknown_name("batch", str(batch), names, "the batches of training")
        place = torch.arange(n, device=device) % len(module.level)
        if batch is not None:
            place = torch.full((n,), names.index(str(batch)), device=device)
        blocks, labels = [], []
        for row in rows:
            dose = torch.as_tensor(row, dtype=torch.float32, device=device)
            with local_seed(seed, device):
                states = module.centre(dose.expand(n, -1), place) + module.scale * self._drawn(
                    dose, place, sampler, **kwargs
                )
                if module.noise is not None:
                    rate = module.noise.rate(states)
                    states = torch.poisson(rate) * (torch.rand_like(rate) >= module.noise.pi)
            blocks.append(states.cpu().numpy())
            labels += [self.codec.label(row, with_dose=True)] * n
        obs = pd.DataFrame(index=[f"draw_{i}" for i in range(len(labels))])
        return prediction_anndata(
            np.concatenate(blocks),
            obs,
            pd.DataFrame(index=pd.Index([str(g) for g in self.get_var_names()])),
            interventions=labels,
            units=self.prediction_units,
            method=type(self).__name__,
            extra={"seed": int(seed), "control": self.codec.control, "sampler": sampler},
        )

    def score_interactions(self, combinations: Sequence[Any]) -> pd.DataFrame:
        """Scores of genetic interactions of predicted combinations :cite:p:`Norman2019`.

        Parameters
        ----------
        combinations
            Pairs of targets, as labels or tuples.

        Returns
        -------
        One row per pair with the values of :func:`sccausal.metrics.gi_scores`, and ``observed`` (whether cells of the
        pair were in training).
        """
        from sccausal.metrics import gi_scores

        rows = self.codec.parse_many(combinations)
        if not all((row != 0).sum() == 2 for row in rows):
            raise InputDataError("Interactions are scored for pairs; name two targets each, e.g. 'A+B'.")
        single = [self.codec.targets[t] for row in rows for t in np.flatnonzero(row)]
        wanted = [self.codec.label(row) for row in rows]
        effects = self.perturbation.effects(list(dict.fromkeys([*wanted, *single])))
        change = effects.pivot(index="intervention", columns="gene", values="change")
        seen = {self.codec.label(row) for row in self._training_doses()} if self.adata is not None else set()
        table = []
        for label, row in zip(wanted, rows, strict=True):
            a, b = (self.codec.targets[t] for t in np.flatnonzero(row))
            found = gi_scores(*(change.loc[k].to_numpy() for k in (label, a, b)))
            table.append({"intervention": label, **found, "observed": label in seen})
        return pd.DataFrame(table)


def numpy_states(module: Any, X: np.ndarray) -> np.ndarray:
    """Moment states (n, d) of counts as an array."""
    with torch.no_grad():
        device = module.scale.device
        return module.moment_states(torch.as_tensor(X, device=device)).cpu().numpy()
