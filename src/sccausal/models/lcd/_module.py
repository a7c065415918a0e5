"""Mathematics of LCD: states around shrunken effects, a conditional denoiser, and a noise model below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn

from sccausal._errors import SetupError
from sccausal.data import KEYS
from sccausal.models.lcd._drift import DriftNetwork, Injection
from sccausal.models.lcd._noise import Generator, NoiseModel, StateGenerator
from sccausal.models.lcd._statistics import N_FEATURES, N_TAIL, StateStatistics, interaction_of
from sccausal.nn.diffusion import EMA
from sccausal.nn.levels import noise_levels
from sccausal.nn.score import Denoiser, GaussianDenoiser, Parametrisation, preconditioning

Stage = Literal["noise", "drift"]


class LCDModule(BaseModuleClass):
    r"""Conditional density of states, given by its denoiser at every level of noise.

    States are written :math:`x = m(c, b) + \mathrm{scale} \cdot z`, with :math:`m` the control level of the batch plus
    the shrunken effects of the intervention, and the denoiser of z is that of one Gaussian, the same for all
    conditions, plus what the network adds. Before training, and wherever the network finds nothing, a condition is
    therefore control, shifted.

    Parameters
    ----------
    n_genes, n_batch, n_targets
        Sizes of the data.
    See :class:`sccausal.models.LCD` for the others.
    """

    level: Tensor
    scale: Tensor
    singles: Tensor
    singles_error: Tensor
    shared: Tensor
    pair_weights: Tensor
    seen: Tensor
    has_zeros: Tensor
    positive: Tensor
    tail: Tensor
    started: Tensor
    gate: Tensor
    levels: Tensor
    noise_trained: Tensor
    environment_rows: Tensor

    def __init__(
        self,
        n_genes: int,
        n_batch: int,
        n_targets: int,
        *,
        n_hidden: int = 256,
        n_layers: int = 2,
        n_embedding: int = 64,
        n_axes: int = 100,
        n_interaction: int = 8,
        injection: Injection = "inject",
        init_scale: float = 0.0,
        parametrisation: Parametrisation = "gaussian",
        sigma_min: float = 0.03,
        sigma_max: float = 10.0,
        n_sigma: int = 30,
        n_draws: int = 4,
        ema_decay: float = 0.999,
        noise_model: Literal["zip"] | None = None,
        generator: Generator = "film",
        environment_rows: Sequence[Sequence[float]] | None = None,
        n_states: int = 500,
        temperatures: tuple[float, ...] = (1.0, 20.0),
    ) -> None:
        super().__init__()
        self.n_genes, self.n_targets, self.n_draws = n_genes, n_targets, n_draws
        self.parametrisation, self.noise_kind = parametrisation, noise_model
        self.stage: Stage = "drift"
        self.drift = DriftNetwork(
            n_genes, n_targets, n_batch, n_hidden=n_hidden, n_layers=n_layers, n_embedding=n_embedding,
            n_interaction=n_interaction, injection=injection, init_scale=init_scale,
        )  # fmt: skip
        if parametrisation == "reference":
            nn.init.xavier_normal_(self.drift.last.weight)
        self.ema = EMA(self.drift, ema_decay)
        self.gaussian = GaussianDenoiser(n_genes, min(n_axes, n_genes))
        self.noise: NoiseModel | None = None
        if noise_model is not None:
            rows = torch.zeros(0, n_targets + 1)
            if environment_rows is not None:
                rows = torch.tensor([list(r) for r in environment_rows], dtype=torch.float32)
            self.register_buffer("environment_rows", rows)
            made = StateGenerator(n_genes, n_targets, n_batch, n_environments=len(rows), kind=generator)
            self.noise = NoiseModel(made, n_genes, n_states, temperatures)
        # a parameter because rows of new batches are found among parameters; it is set, and gets no gradient
        self.level = nn.Parameter(torch.zeros(n_batch, n_genes))
        for name, shape in (
            ("scale", (n_genes,)), ("singles", (n_targets, n_genes)), ("singles_error", (n_targets, n_genes)),
            ("shared", (n_genes,)), ("pair_weights", (N_FEATURES,)), ("positive", (n_genes,)),
            ("tail", (N_TAIL, n_genes)),
        ):  # fmt: skip
            self.register_buffer(name, torch.zeros(shape))
        self.scale.fill_(1.0)
        self.register_buffer("seen", torch.zeros(n_targets, dtype=torch.bool))
        self.register_buffer("has_zeros", torch.zeros(n_genes, dtype=torch.bool))
        self.register_buffer("gate", torch.ones(n_targets))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("noise_trained", torch.zeros((), dtype=torch.bool))
        self.register_buffer("levels", noise_levels(n_sigma, sigma_min, sigma_max))
        self._changes: dict[bytes, Tensor] = {}

    # ------------------------------------------------------------------ closed form

    @torch.no_grad()
    def start(self, statistics: StateStatistics) -> None:
        """Take over the closed-form part."""
        pairs = (
            (self.level, statistics.level), (self.scale, statistics.scale), (self.singles, statistics.singles),
            (self.singles_error, statistics.singles_error), (self.shared, statistics.shared),
            (self.pair_weights, statistics.interaction), (self.seen, statistics.seen),
            (self.has_zeros, statistics.has_zeros), (self.positive, statistics.positive), (self.tail, statistics.tail),
        )  # fmt: skip
        for buffer, values in pairs:
            buffer.copy_(torch.as_tensor(values))
        self.gaussian.set_covariance(torch.as_tensor(statistics.covariance))
        self._changes.clear()
        self.started.fill_(True)

    def change(self, dose: Tensor) -> Tensor:
        """Closed-form change of the mean (n, d) under doses (n, T); zero for control."""
        rows, code = torch.unique(dose, dim=0, return_inverse=True)
        return torch.stack([self._change_of(row) for row in rows])[code]

    def _change_of(self, row: Tensor) -> Tensor:
        out = row @ self.singles
        if int((row != 0).sum()) > 1 and bool(self.pair_weights.any()):
            key = row.cpu().numpy().tobytes()
            if key not in self._changes:
                parts = (row, self.singles, self.scale, self.pair_weights)
                found = interaction_of(*(p.double().cpu().numpy() for p in parts))
                self._changes[key] = torch.as_tensor(found, dtype=out.dtype, device=out.device)
            out = out + self._changes[key]
        return out

    @property
    def average_level(self) -> Tensor:
        """Control level (d,) of the average batch of the reference."""
        return self.level.detach()[: int(self.drift.n_reference)].mean(0)

    def centre(self, dose: Tensor, batch: Tensor) -> Tensor:
        """Level of cells (n, d) under doses in batches (n,)."""
        return self.level.detach()[batch] + self.change(dose)

    # ------------------------------------------------------------------ denoiser

    def base(self, z: Tensor, sigma: Tensor | float) -> Tensor:
        """What the denoiser gives without the network (n, d)."""
        if self.parametrisation == "gaussian":
            return self.gaussian(z, sigma)
        sigma = torch.as_tensor(sigma, dtype=z.dtype, device=z.device)
        return preconditioning(sigma, self.parametrisation).skip * z

    def denoiser(self, dose: Tensor, batch: Tensor | None = None) -> Denoiser:
        """Denoiser of standardised states under one dose row (T,) in one batch (0-d; ``None``: the average batch)."""
        place = None if batch is None else batch.reshape(1)
        condition = self.drift.inject(self.drift.embed((dose * self.gate).unsqueeze(0), place))
        known: dict[float, list[Tensor]] = {}

        def denoise(z: Tensor, sigma: float) -> Tensor:
            if sigma not in known:  # once per level
                known[sigma] = self.drift.level(torch.tensor([sigma], dtype=z.dtype, device=z.device))
            factors = preconditioning(torch.tensor(sigma, dtype=z.dtype, device=z.device), self._kind)
            return self.base(z, sigma) + factors.out * self.drift(factors.into * z, known[sigma], condition)

        return denoise

    @property
    def _kind(self) -> Parametrisation:
        return "reference" if self.parametrisation == "reference" else "edm"

    # ------------------------------------------------------------------ training

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        x = tensors[KEYS.X]
        batch = tensors.get(KEYS.BATCH)
        place = torch.zeros(len(x), dtype=torch.long, device=x.device) if batch is None else batch.long().squeeze(-1)
        return {"x": x, "dose": tensors[KEYS.INTERVENTION].to(x.dtype), "batch": place}

    def _get_generative_input(self, tensors: dict[str, Tensor], inference_outputs: Any, **_: Any) -> dict[str, Tensor]:
        return {"z": inference_outputs["z"]}

    @auto_move_data
    def inference(self, x: Tensor, dose: Tensor, batch: Tensor, n_samples: int = 1) -> dict[str, Tensor]:
        """Standardised states (n, d) of cells, around the level of their condition."""
        if self.noise is not None:
            x = self.drawn_states(dose, batch) if self.training and self.stage == "drift" else self.moment_states(x)
        return {"z": (x - self.centre(dose, batch)) / self.scale}

    @auto_move_data
    def generative(self, z: Tensor) -> dict[str, Tensor]:
        """Nothing beyond the states; the density is given by its denoiser."""
        return {"z": z}

    def moment_states(self, x: Tensor) -> Tensor:
        """States whose rates are the counts themselves (n, d), for a first look."""
        assert self.noise is not None
        return self.noise.state_of(x / (1 - self.noise.pi))

    def drawn_states(self, dose: Tensor, batch: Tensor) -> Tensor:
        """States drawn from the noise model for the environments of cells (n, d)."""
        assert self.noise is not None
        out = torch.empty(len(dose), self.n_genes, device=dose.device)
        for row, place, members in environments(dose, batch):
            with torch.no_grad():
                index = self.environment(row, place)
                out[members] = self.noise.states(self.noise_level[place], row, place, len(members), index)
        return out

    @property
    def noise_level(self) -> Tensor:
        """Control states of the batches (b, d) from which the generator starts."""
        return self.level.detach()

    def environment(self, row: Tensor, batch: Tensor) -> int:
        """Number of an environment, for generators of their own.

        Raises
        ------
        sccausal._errors.SetupError
            There is no such environment in training.
        """
        if self.noise is None or self.noise.generator.kind != "per_env":
            return 0
        wanted = torch.cat([row, batch.to(row.dtype).reshape(1)])
        found = torch.nonzero((self.environment_rows.to(row) == wanted).all(1))
        if not len(found):
            raise SetupError(
                "With generator='per_env' states can be drawn only for interventions and batches seen in training; "
                "use generator='film' for others."
            )
        return int(found[0])

    def loss(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Tensor], generative_outputs: dict[str, Tensor]
    ) -> LossOutput:
        """Denoising score matching per gene (stage ``"drift"``), or negative log-evidence per gene (``"noise"``).

        Parameters
        ----------
        tensors
            Cells.
        inference_outputs, generative_outputs
            Results of :meth:`inference` and :meth:`generative`.
        """
        cells = self._get_inference_input(tensors)
        if self.stage == "noise":
            return self._noise_loss(**cells)
        z = inference_outputs["z"]
        error = self.denoising_error(z, cells["dose"], cells["batch"], self.n_draws)
        per_cell = error.view(self.n_draws, len(z)).mean(0)
        # counts enter stage 2 through the noise model only; a broken one must be noticed here as well
        broken = cells["x"].sum() * 0 if self.noise is not None else 0.0
        return LossOutput(
            loss=per_cell.mean() + broken, reconstruction_loss=per_cell, kl_local=torch.zeros_like(per_cell)
        )

    def denoising_error(self, z: Tensor, dose: Tensor, batch: Tensor, n_draws: int) -> Tensor:
        """Weighted squared errors of the denoiser per gene, (n_draws * n,); levels are stratified over the cells."""
        n, n_levels = len(z), len(self.levels)
        # each level equally often, in random order: far less variance than independent draws
        index = torch.randperm(n * n_draws, device=z.device) % n_levels
        sigma = self.levels[index].unsqueeze(1)
        z = z.repeat(n_draws, 1)
        noisy = z + sigma * torch.randn_like(z)
        factors = preconditioning(sigma, self._kind)
        place = batch.clamp_max(len(self.drift.batch) - 1)
        condition = [c.repeat(n_draws, 1) for c in self.drift.inject(self.drift.embed(dose, place))]
        level = [t[index] for t in self.drift.level(self.levels)]
        found = self.drift(factors.into * noisy, level, condition)
        target = (z - self.base(noisy, sigma)) / factors.out
        return (found - target).square().mean(1)

    def _noise_loss(self, x: Tensor, dose: Tensor, batch: Tensor) -> LossOutput:
        assert self.noise is not None
        evidence, plain = torch.zeros(len(x), device=x.device), torch.zeros(len(x), device=x.device)
        for row, place, members in environments(dose, batch):
            states = self.noise.states(
                self.noise_level[place], row, place, self.noise.n_states, self.environment(row, place)
            )
            evidence[members], plain[members] = self.noise.evidence(x[members], states)
        loss = -evidence / self.n_genes
        return LossOutput(
            loss=loss.mean(),
            reconstruction_loss=loss,
            kl_local=torch.zeros_like(loss),
            extra_metrics={"log_evidence": (plain / self.n_genes).mean(), "pi": self.noise.pi.mean().detach()},
        )

    # ------------------------------------------------------------------ hooks of the plan

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Biases and levels of noise by themselves, without decay; the stage that rests, without learning rate."""
        plain = [p for name, p in self.drift.named_parameters() if p.ndim == 1 or name.startswith("time")]
        groups: list[dict[str, Any]] = [{"params": plain, "name": "plain", "weight_decay": 0.0}]
        rest = [p for name, p in self.drift.named_parameters() if not (p.ndim == 1 or name.startswith("time"))]
        groups.append({"params": rest, "name": "drift"})
        if self.noise is not None:
            groups.append({"params": list(self.noise.parameters()), "name": "noise", "weight_decay": 0.0})
        return groups

    def proximal_step(self, lr: float) -> None:
        """Average the weights."""
        if self.stage == "drift":
            self.ema.update(self.drift)

    def on_epoch_start(self, epoch: int, max_epochs: int | None) -> None:
        """Nothing changes with the epoch; the learning rate follows the plan."""


def environments(dose: Tensor, batch: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Distinct (dose row, batch) of cells with the positions of their cells."""
    joint = torch.cat([dose, batch.to(dose.dtype).unsqueeze(1)], 1)
    rows, code = torch.unique(joint, dim=0, return_inverse=True)
    return [(row[:-1], row[-1].round().long(), torch.nonzero(code == i).squeeze(1)) for i, row in enumerate(rows)]


def numpy(x: Tensor) -> np.ndarray:
    """Float64 array of a tensor."""
    return x.detach().double().cpu().numpy()
