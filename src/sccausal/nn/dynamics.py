"""Lagged dynamics with additive noise: latents relax towards goals that gated parents set."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from sccausal._errors import SetupError

LaggedGraph = Literal["full", "triangular"]


class Transition(NamedTuple):
    """Gaussian law of the next state: mean (n, d) and log-variance (n, d)."""

    mean: Tensor
    log_var: Tensor


@torch.no_grad()
def pooled_moments(values: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean (d,), standard deviation (d,) and number of the rows (n, d) of all processes of a training.

    Running statistics have to agree between processes, each of which sees other cells.
    """
    if not (dist.is_available() and dist.is_initialized()):
        n = len(values)
        return values.mean(0), values.std(0) if n > 1 else torch.zeros_like(values.sum(0)), n
    total = torch.cat([values.sum(0), values.square().sum(0), values.new_tensor([float(len(values))])])
    dist.all_reduce(total)
    n = int(total[-1])
    mean, square = total[:-1].reshape(2, -1) / max(n, 1)
    return mean, ((square - mean.square()).clamp_min(0.0) * (n / max(n - 1, 1))).sqrt(), n


class LaggedDynamics(nn.Module):
    r"""Transition of a latent block over a time gap, with one net per coordinate and a gate per edge.

    .. math::
        s_{i}(t + \Delta) = s_i + (1 - e^{-k_i\Delta})\bigl(g_i - s_i\bigr) + \epsilon_i, \qquad
        g_i = (1 - \kappa_i(e))\,\bigl(f_i(G_{\cdot i} \odot p) - \bar f_i\bigr) + \mu_i(e), \qquad
        \operatorname{var}(\epsilon_i) = \sigma_i^2(e)\,(1 - e^{-2 k_i \Delta})

    with the parents p (this block, and other blocks), features e of the intervention (zero for control), and
    :math:`\bar f_i` the mean of :math:`f_i` over control cells, so that :math:`\mu_i` alone holds what an intervention
    does to an average cell. An intervention moves the goal (:math:`\mu`), changes the noise (:math:`\sigma`), and takes
    away a share :math:`\kappa \in [0, 1)` of what the parents say. The signed gates G are the weights of the linear
    part of :math:`f_i` and scale its bent part, so that a zero gate cuts the edge. Any gap can be asked for.

    Parameters
    ----------
    n_state
        Dimension d of the block.
    n_other
        Dimension of the other blocks that may be parents.
    n_features
        Dimension q of the features of interventions; 0 for a block that no intervention moves.
    n_hidden
        Hidden units of each coordinate's net.
    graph
        ``"full"``: every coordinate may act on every other; a coordinate persists at its own rate k.
        ``"triangular"``: only earlier coordinates act on later ones and nothing persists, as in the paper of CITE-VAE.

    Notes
    -----
    Sources are rows and targets columns of :attr:`gates`, (d + n_other, d): the block itself first.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import LaggedDynamics
    >>> dynamics = LaggedDynamics(n_state=3, n_other=2, n_features=4)
    >>> law = dynamics(torch.zeros(5, 3), torch.ones(5, 1), torch.zeros(5, 2), torch.zeros(5, 4))
    >>> law[0].shape, dynamics.weights().shape
    (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        n_state: int,
        n_other: int = 0,
        n_features: int = 0,
        *,
        n_hidden: int = 8,
        graph: LaggedGraph = "full",
    ) -> None:
        super().__init__()
        if graph not in ("full", "triangular"):
            raise SetupError(f"Unknown lagged_graph {graph!r}; use 'full' or 'triangular'.")
        self.n_state, self.n_other, self.n_features, self.graph = n_state, n_other, n_features, graph
        own = torch.ones(n_state, n_state)
        own = torch.triu(own, 1) if graph == "triangular" else own - torch.eye(n_state)
        self.register_buffer("allowed", torch.cat([own, torch.ones(n_other, n_state)]), persistent=False)
        self.allowed: Tensor
        n_parents = n_state + n_other
        self.gates = nn.Parameter(0.1 * torch.randn(n_parents, n_state))
        self.first = nn.Parameter(torch.randn(n_parents, n_state, n_hidden))
        self.bias = nn.Parameter(0.5 * torch.randn(n_state, n_hidden))
        self.second = nn.Parameter(torch.zeros(n_state, n_hidden))
        self.centre = nn.Parameter(torch.zeros(n_state))
        self.log_rate = nn.Parameter(torch.zeros(n_state))
        self.log_scale = nn.Parameter(torch.full((n_state,), -0.5))
        if n_features:
            self.goal = nn.Parameter(torch.zeros(n_features, n_state))
            self.spread = nn.Parameter(torch.zeros(n_features, n_state))
            self.cut = nn.Parameter(0.05 * torch.randn(n_features, n_state))
        self.register_buffer("control_mean", torch.zeros(n_state))
        self.control_mean: Tensor

    def weights(self) -> Tensor:
        """Signed gates (d + n_other, d); forbidden edges are zero."""
        return self.gates * self.allowed

    def l1(self) -> Tensor:
        """Sum of the sizes of all gates."""
        return self.weights().abs().sum()

    def decay(self, dt: Tensor) -> Tensor:
        """Share of a deviation from the goal that is left after the gap ``dt`` (n, 1), shape (n, d)."""
        if self.graph == "triangular":
            return torch.zeros(dt.shape[0], self.n_state, dtype=dt.dtype, device=dt.device)
        return torch.exp(-dt * self.log_rate.clamp(-6.0, 4.0).exp())

    def pull(self, parents: Tensor) -> Tensor:
        """What the parents (n, d + n_other) say about the goals before centring, (n, d)."""
        gates = self.weights()
        unit = F.normalize(self.first, dim=2)  # so that a gate cannot be bought back by a larger weight
        hidden = torch.einsum("nj,jih->nih", parents, gates.unsqueeze(2) * unit) + self.bias
        return parents @ gates + ((torch.tanh(hidden) - torch.tanh(self.bias)) * self.second).sum(2)

    def natural(self, features: Tensor | None, n: int = 1) -> tuple[Tensor, Tensor]:
        """Intercept and log-variance of the innovations under interventions, (n, d) each."""
        mean, log_var = self.centre.expand(n, -1), (2 * self.log_scale).expand(n, -1)
        if features is not None and self.n_features:
            mean, log_var = mean + features @ self.goal, log_var + features @ self.spread
        return mean, log_var.clamp(-10.0, 6.0)

    def shares(self, features: Tensor) -> Tensor:
        """Share of each coordinate in what interventions do to goals and noises, (n, d); rows sum to 1.

        Sizes enter with the fourth power, so that a coordinate that an intervention hits stands out.
        """
        mean, log_var = self.natural(features, len(features))
        base, base_log_var = self.natural(None, 1)
        size = (mean - base).square() * torch.exp(-base_log_var) + 0.25 * (log_var - base_log_var).square()
        return size.square() / size.square().sum(1, keepdim=True).clamp_min(1e-9)

    def kept(self, features: Tensor | None, n: int) -> Tensor:
        """Share of the parents' say that an intervention leaves, (n, d); 1 for control."""
        if features is None or not self.n_features:
            return self.gates.new_ones(n, self.n_state)
        return torch.exp(-(features @ self.cut).square())

    def forward(
        self, state: Tensor, dt: Tensor, other: Tensor | None = None, features: Tensor | None = None
    ) -> Transition:
        """Law of the state (n, d) after the gap ``dt`` (n, 1)."""
        parents = state if other is None else torch.cat([state, other], 1)
        mean, log_var = self.natural(features, len(state))
        goal = self.kept(features, len(state)) * (self.pull(parents) - self.control_mean) + mean
        left = self.decay(dt)
        gained = (1 - left * left).clamp_min(1e-6)
        return Transition(left * state + (1 - left) * goal, log_var + torch.log(gained))

    @torch.no_grad()
    def follow_control(self, state: Tensor, other: Tensor | None, control: Tensor, rate: float = 0.05) -> None:
        """Move the running mean of :meth:`pull` over control cells; ``control`` (n,) marks them."""
        parents = state if other is None else torch.cat([state, other], 1)
        new, _, n = pooled_moments(self.pull(parents[control]))
        if not n:
            return
        # the goal of a control cell stays where it is: what the mean takes, the intercept gives
        step = rate * (new - self.control_mean)
        self.control_mean.add_(step)
        self.centre.add_(step)
