"""Mathematics of CITE-VAE."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn
from torch.nn import functional as F

from sccausal._errors import SetupError
from sccausal.data import KEYS
from sccausal.models.citevae._components import Bent, EarlierLaw, Encoder, kl_normal, standardised
from sccausal.models.citevae._pairing import recouple
from sccausal.models.citevae._start import Start
from sccausal.nn.discrepancy import coupled_discrepancy, group_discrepancy
from sccausal.nn.dynamics import LaggedDynamics, LaggedGraph, pooled_moments
from sccausal.nn.likelihood import Likelihood, check_likelihood, count_log_likelihood, gaussian

Alignment = Literal["mmd", "energy", "paired", "none"]
ALIGNMENTS = ("mmd", "energy", "paired", "none")
Coupling = Literal["independent", "ot", "ot-invariant", "tracked"]
COUPLINGS = ("independent", "ot", "ot-invariant", "tracked")
# The dynamics are small and start from nothing, so that they need larger steps than encoder and decoder. Random pairs
# hold nothing of a cell's own past, and larger steps would only fit that.
_DYNAMICS_LR = 5.0
_DYNAMICS_HIDDEN = 16
_FEWEST = 8  # cells of one kind for which a moment says something
_USED = (REGISTRY_KEYS.X_KEY, KEYS.BATCH, KEYS.INTERVENTION, KEYS.TIME)


class CITEVAEModule(BaseModuleClass):
    """Variational autoencoder with an invariant and a responsive block that move in time.

    Parameters
    ----------
    n_genes, n_batch, n_targets, n_features
        Sizes; ``n_features`` is the dimension of the embedding of targets.
    See :class:`sccausal.models.CITEVAE` for the others.
    """

    def __init__(
        self,
        n_genes: int,
        n_batch: int,
        n_targets: int,
        n_features: int,
        *,
        n_invariant: int = 8,
        n_responsive: int = 8,
        n_hidden: int = 128,
        gene_likelihood: Likelihood = "gaussian",
        lagged_graph: LaggedGraph = "full",
        pairing: Coupling = "independent",
        alignment: Alignment = "mmd",
        alignment_weight: float = 3.0,
        release_weight: float = 0.3,
        gate_weight: float = 2e-3,
        invariant_kl: float = 0.5,
        free_bits: float = 0.0,
        dynamics_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_likelihood(gene_likelihood)
        _check_choice("alignment", alignment, ALIGNMENTS)
        _check_choice("pairing", pairing, COUPLINGS)
        self.n_genes, self.n_batch, self.n_targets, self.n_features = n_genes, n_batch, n_targets, n_features
        self.n_invariant, self.n_responsive = n_invariant, n_responsive
        self.gene_likelihood, self.pairing, self.alignment = gene_likelihood, pairing, alignment
        self.alignment_weight = 0.0 if alignment == "none" else alignment_weight
        self.release_weight = release_weight
        self.gate_weight, self.invariant_kl, self.free_bits = gate_weight, invariant_kl, free_bits
        self.dynamics_weight = dynamics_weight
        self.encode_invariant = Encoder(n_genes, n_invariant, n_hidden)
        self.encode_responsive = Encoder(n_genes + n_features, n_responsive, n_hidden)
        self.decoder = Bent(n_invariant + n_responsive, n_genes, n_hidden)
        self.invariant = LaggedDynamics(n_invariant, n_hidden=_DYNAMICS_HIDDEN)
        self.responsive = LaggedDynamics(
            n_responsive, n_invariant, n_features, n_hidden=_DYNAMICS_HIDDEN, graph=lagged_graph
        )
        self.earlier = EarlierLaw(n_invariant + n_features + 1, n_responsive) if dynamics_weight else None
        self.graph_parameters = ("responsive.gates", "invariant.gates")
        self.spread = nn.Parameter(torch.zeros(n_genes))
        self.dropout_logit = nn.Parameter(torch.full((n_genes,), -3.0)) if gene_likelihood == "zinb" else None
        # with one batch its shift could not be told from the mean
        self.batch_shift = nn.Parameter(torch.zeros(n_batch, n_genes), requires_grad=n_batch > 1)
        self.register_buffer("embedding", torch.zeros(n_targets, n_features))
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("scale", torch.ones(n_genes))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        # time that counts as one in the dynamics: the median gap
        self.register_buffer("time_unit", torch.ones(()))
        # running mean and standard deviation of both blocks over training cells
        self.register_buffer("latent_mean", torch.zeros(n_invariant + n_responsive))
        self.register_buffer("latent_sd", torch.ones(n_invariant + n_responsive))

    # ------------------------------------------------------------------ inference

    def _get_inference_input(self, tensors: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        if "target" in tensors:
            halves = [tensors["source"], tensors["target"]]
            tensors = {k: torch.cat([h[k] for h in halves]) for k in halves[0] if k in _USED}
        x = tensors[REGISTRY_KEYS.X_KEY]
        batch, dose, time = (tensors.get(k) for k in (KEYS.BATCH, KEYS.INTERVENTION, KEYS.TIME))
        return {
            "x": x,
            "batch": torch.zeros(len(x), dtype=torch.long, device=x.device)
            if batch is None
            else batch.long().squeeze(-1),
            "dose": x.new_zeros(len(x), self.n_targets) if dose is None else dose.to(x.dtype),
            "time": x.new_zeros(len(x), 1) if time is None else time.to(x.dtype).reshape(-1, 1) / self.time_unit,
        }

    def features(self, x: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised (log-normalised) expression without the batch (n, m), and library sizes (n, 1)."""
        library = x.sum(1, keepdim=True).clamp_min(1e-4)
        if self.gene_likelihood != "gaussian":
            x = torch.log1p(x * (1e4 / library))
        return (x - self.mean) / self.scale - self.batch_shift[batch], library

    @auto_move_data
    def inference(self, x: Tensor, batch: Tensor, dose: Tensor, time: Tensor, n_samples: int = 1) -> dict[str, Tensor]:
        """Posteriors of both blocks under the cells' own interventions."""
        features, library = self.features(x, batch)
        e = dose @ self.embedding
        c_mean, c_log_var = self.encode_invariant(features)
        s_mean, s_log_var = self.encode_responsive(torch.cat([features, e], 1))
        c, s = c_mean, s_mean
        if self.training:
            c, s = _draw(c_mean, c_log_var), _draw(s_mean, s_log_var)
        return {
            "features": features, "library": library, "e": e, "c": c, "s": s,
            "c_mean": c_mean, "c_log_var": c_log_var, "s_mean": s_mean, "s_log_var": s_log_var,
        }  # fmt: skip

    # ------------------------------------------------------------------ generation

    def _get_generative_input(self, tensors: dict[str, Any], inference_outputs: dict[str, Tensor]) -> dict[str, Any]:
        out = inference_outputs
        batch = self._get_inference_input(tensors)["batch"]
        return {"c": out["c"], "s": out["s"], "library": out["library"], "batch": batch}

    @auto_move_data
    def generative(self, c: Tensor, s: Tensor, library: Tensor, batch: Tensor) -> dict[str, Tensor]:
        """Mean expression (n, m): standardised features (Gaussian) or counts."""
        return {"mean": self.decode(torch.cat([c, s], 1), library, batch)}

    def decode(self, latent: Tensor, library: Tensor, batch: Tensor) -> Tensor:
        """Mean of standardised features without the batch (n, m), or expected counts."""
        out = self.decoder(latent)
        if self.gene_likelihood == "gaussian":
            return out
        return library * 1e-4 * torch.exp((out + self.batch_shift[batch] * self.scale).clamp(-15.0, 9.0))

    def profile(self, latent: Tensor) -> Tensor:
        """Decoded expression (n, m) on the log scale of the data, without batch."""
        out = self.decoder(latent)
        if self.gene_likelihood == "gaussian":
            return out * self.scale + self.mean
        return torch.log1p(torch.exp(out.clamp(-15.0, 9.0)))

    def step(self, c: Tensor, s: Tensor, dt: Tensor, e: Tensor, sample: bool = False) -> tuple[Tensor, Tensor]:
        """Both blocks after the gap ``dt`` (n, 1) in units of ``time_unit``."""
        next_c = self.invariant(c, dt)
        next_s = self.responsive(s, dt, c, e)
        if not sample:
            return next_c.mean, next_s.mean
        return _draw(*next_c), _draw(*next_s)

    # ------------------------------------------------------------------ loss

    def loss(
        self,
        tensors: dict[str, Any],
        inference_outputs: dict[str, Tensor],
        generative_outputs: dict[str, Tensor],
        kl_weight: float | Tensor = 1.0,
    ) -> LossOutput:
        """Negative temporal ELBO per gene, plus alignment and sparsity of the gates.

        Parameters
        ----------
        tensors
            Pairs of cells of adjacent times (``source`` and ``target``), or cells.
        inference_outputs, generative_outputs
            Results of :meth:`inference` and :meth:`generative`.
        kl_weight
            Weight of the KL divergences (warm-up).
        """
        out, cells = inference_outputs, self._get_inference_input(tensors)
        per_gene = 1.0 / self.n_genes
        reconstruction = -self.log_likelihood(cells["x"], out["features"], generative_outputs["mean"]) * per_gene
        paired = "target" in tensors
        kl_c, kl_s = self.kl(out, cells, paired)
        kl = (self.invariant_kl * kl_c.clamp_min(self.free_bits).sum(1) + kl_s.clamp_min(self.free_bits).sum(1)) * (
            per_gene
        )
        terms: dict[str, Tensor] = {}
        if self.alignment_weight:
            terms["alignment"] = self.alignment_weight * self.align(out, cells, paired)
        if self.release_weight and paired and self.n_targets and self.n_features:
            terms["release"] = self.release_weight * self.released(out, cells)
        if self.gate_weight:
            terms["sparsity"] = self.gate_weight * per_gene * self.responsive.l1()
        if self.training:
            self._follow(out, cells)
        loss = (reconstruction + kl_weight * kl).mean() + sum(terms.values(), reconstruction.new_zeros(()))
        extra = {name: value.detach() for name, value in terms.items()}
        extra["kl_invariant"] = kl_c.detach().sum(1).mean()
        extra["kl_responsive"] = kl_s.detach().sum(1).mean()
        extra["variance_invariant"] = out["c_mean"].detach().var(0).mean()
        return LossOutput(loss=loss, reconstruction_loss=reconstruction, kl_local=kl, extra_metrics=extra)

    def log_likelihood(self, x: Tensor, features: Tensor, mean: Tensor) -> Tensor:
        """Log-likelihood of each cell (n,) without constants."""
        if self.gene_likelihood == "gaussian":
            return gaussian(features, mean, self.spread)
        return count_log_likelihood(x, mean, self.spread, self.dropout_logit)

    def kl(self, out: dict[str, Tensor], cells: dict[str, Tensor], paired: bool) -> tuple[Tensor, Tensor]:
        """KL divergence of each latent from its prior, (n, d_c) and (n, d_s); later cells from the transition.

        Without dynamics the prior is standard normal.
        """
        zero = out["c_mean"].new_zeros(())
        c = kl_normal(out["c_mean"], out["c_log_var"], zero, zero)
        if self.earlier is None:
            return c, kl_normal(out["s_mean"], out["s_log_var"], zero, zero)
        s = self.earlier.kl(out["s_mean"], out["s_log_var"], torch.cat([out["c"], out["e"], cells["time"]], 1))
        if not paired:
            return c, s
        n = len(cells["x"]) // 2
        order = self.coupling(out, cells)
        dt = (cells["time"][n:] - cells["time"][:n][order]).clamp_min(1e-3)
        before_c, before_s = out["c"][:n][order], out["s"][:n][order]
        next_c = self.invariant(before_c, dt)
        next_s = self.responsive(before_s, dt, before_c, out["e"][n:])
        later_c = kl_normal(out["c_mean"][n:], out["c_log_var"][n:], *next_c)
        later_s = kl_normal(out["s_mean"][n:], out["s_log_var"][n:], *next_s)
        w = self.dynamics_weight
        return (
            torch.cat([c[:n], w * later_c + (1 - w) * c[n:]]),
            torch.cat([s[:n], w * later_s + (1 - w) * s[n:]]),
        )

    @torch.no_grad()
    def coupling(self, out: dict[str, Tensor], cells: dict[str, Tensor]) -> Tensor:
        """Source row of each target row (n,)."""
        n = len(cells["x"]) // 2
        if self.pairing in ("independent", "tracked"):
            return torch.arange(n, device=cells["x"].device)
        z = out["c_mean"] if self.pairing == "ot-invariant" else torch.cat([out["c_mean"], out["s_mean"]], 1)
        key = torch.cat([cells["dose"][:n], cells["time"][:n]], 1)
        return recouple(z[:n], z[n:], torch.unique(key, dim=0, return_inverse=True)[1])

    def align(self, out: dict[str, Tensor], cells: dict[str, Tensor], paired: bool) -> Tensor:
        """How far the invariant block differs between interventions at equal time."""
        groups = torch.unique(cells["dose"], dim=0, return_inverse=True)[1]
        c, control = out["c_mean"], (cells["dose"] == 0).all(1)
        halves = [slice(None)] if not paired else [slice(0, len(c) // 2), slice(len(c) // 2, None)]
        parts, weight = c.new_zeros(()), 0
        for half in halves:
            time = cells["time"][half, 0]
            for moment in torch.unique(time):
                rows = torch.nonzero(time == moment).squeeze(1) + (half.start or 0)
                if len(rows) < _FEWEST:
                    continue
                parts = parts + len(rows) * self._align_one(c[rows], groups[rows], control[rows])
                weight += len(rows)
        return parts / max(weight, 1)

    def _align_one(self, c: Tensor, group: Tensor, control: Tensor) -> Tensor:
        if self.alignment == "paired":  # the form of the paper, over independent pairs
            return coupled_discrepancy(c, group, control)
        return group_discrepancy(standardised(c), group, "energy" if self.alignment == "energy" else "mmd")

    def released(self, out: dict[str, Tensor], cells: dict[str, Tensor]) -> Tensor:
        """Squared correlation of each responsive latent with c under the interventions that act on it (0-d tensor).

        Such an intervention takes the parents of the latent away (Assumption 4.3 of the paper). Nothing else tells a
        responsive latent from its sum with a function of c.
        """
        n = len(cells["x"]) // 2
        kinds, member = torch.unique(cells["dose"][n:], dim=0, return_inverse=True)
        member = F.one_hot(member, len(kinds)).to(out["c_mean"].dtype)
        count = member.sum(0)
        # c is what it is; it is the responsive latents that give way
        c, s = out["c_mean"][n:].detach(), out["s_mean"][n:]
        c, s = (z - member @ ((member.T @ z) / count[:, None]) for z in (c, s))
        shared = torch.einsum("ng,ni,nj->gij", member, s, c).square()
        total_s, total_c = (member.T @ z.square() + 1e-3 for z in (s, c))
        correlation = (shared / (total_s[:, :, None] * total_c[:, None, :])).sum(2)
        share = self.responsive.shares(kinds @ self.embedding).detach()
        weight = share * (count * (count >= _FEWEST) * (kinds != 0).any(1))[:, None]
        return (weight * correlation).sum() / weight.sum().clamp_min(1e-6)

    @torch.no_grad()
    def _follow(self, out: dict[str, Tensor], cells: dict[str, Tensor]) -> None:
        control = (cells["dose"] == 0).all(1)
        self.responsive.follow_control(out["s"], out["c"], control)
        z = torch.cat([out["c_mean"], out["s_mean"]], 1)
        mean, sd, n = pooled_moments(z)
        if n > 1:
            self.latent_mean.lerp_(mean, 0.05)
            self.latent_sd.lerp_(sd, 0.05)

    @torch.no_grad()
    def standardised_graph(self) -> np.ndarray:
        """Mean effect (d_c + d_s, d_s) of each latent on each responsive one a unit of time later, per SD of both."""
        block, n_c = self.responsive, self.n_invariant
        z = self.latent_mean + self.latent_sd * torch.randn(
            512, len(self.latent_mean), generator=torch.Generator().manual_seed(0)
        ).to(self.latent_sd)
        dt = z.new_ones(len(z), 1)

        def later(state: Tensor) -> Tensor:
            return block(state[:, n_c:], dt, state[:, :n_c]).mean

        rows = []
        for j in range(z.shape[1]):
            step = torch.zeros_like(z)
            step[:, j] = 0.5 * self.latent_sd[j]
            moved = later(z + step) - later(z - step)
            # a bent influence may go both ways: its size is that of all cells, its sign that of most
            rows.append(moved.square().mean(0).sqrt() * torch.sign(moved.mean(0)))
        return (torch.stack(rows) / self.latent_sd[n_c:].clamp_min(1e-6)).cpu().numpy()

    @torch.no_grad()
    def start(self, start: Start, *, linear: bool) -> None:
        """Take over centres and scales, and with ``linear`` the axes of both blocks."""
        self.mean.copy_(torch.as_tensor(start.mean))
        self.scale.copy_(torch.as_tensor(start.scale))
        counts = self.gene_likelihood != "gaussian"
        self.decoder.linear.bias.zero_()
        if counts and start.log_rate is not None:
            self.decoder.linear.bias.copy_(torch.as_tensor(start.log_rate))
        if not linear:
            return
        for encoder, block in ((self.encode_invariant, start.invariant), (self.encode_responsive, start.responsive)):
            weight = encoder.map.linear.weight
            weight[: encoder.n_latent].zero_()
            weight[: encoder.n_latent, : self.n_genes] = torch.as_tensor(block.T).to(weight)
        unit = start.scale[:, None] if counts else 1.0
        self.decoder.linear.weight.copy_(torch.as_tensor(start.loadings * unit))

    # ------------------------------------------------------------------ plan

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Dynamics apart; gates by themselves, which weight decay would pull to zero beside the L1 term."""
        gates = [self.responsive.gates, self.invariant.gates]
        known = {id(gate) for gate in gates}
        blocks = [block for block in (self.responsive, self.invariant, self.earlier) if block is not None]
        others = [p for block in blocks for p in block.parameters() if id(p) not in known]
        rate = lr if self.pairing == "independent" else _DYNAMICS_LR * lr
        return [
            {"params": gates, "name": "structure", "weight_decay": 0.0, "lr": rate},
            {"params": others, "name": "dynamics", "lr": rate},
        ]

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """Roll-outs are drawn by :meth:`sccausal.models.CITEVAE.rollout`."""
        raise NotImplementedError("Use CITEVAE.rollout.")


def _draw(mean: Tensor, log_var: Tensor) -> Tensor:
    return mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SetupError(f"Unknown {name} {value!r}; choose one of {', '.join(known)}.")
