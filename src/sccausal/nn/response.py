"""How interventions move a latent block: singles that depend on the cell's state, combinations that start additive."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InterventionResponse(nn.Module):
    r"""Shift of a latent block under doses ``u`` in a cell of state ``s``.

    .. math::
        r(u, s) = \sum_t u_t \, (c_t + B_t s + M_t \phi(s)) + W\, \tfrac12\bigl[(uE)^2 - u^2 E^2\bigr]

    The sum is additive over targets and linear in the dose. The last term is a factorised sum over *pairs* of targets,
    so it vanishes for every single intervention whatever its weights; ``W`` starts at zero, hence a new combination
    is predicted as additive until data say otherwise. ``B`` and ``M`` start at zero as well: every cell starts with
    the mean shift ``c``.

    Parameters
    ----------
    n_targets
        Number of targets T.
    n_output
        Dimension k of the latent block.
    n_state
        Dimension d of the state; 0 makes the shift the same for all cells.
    n_hidden
        Width of :math:`\phi`; 0 leaves the linear part only.
    n_interaction
        Rank of the interaction; 0 keeps combinations exactly additive.
    """

    def __init__(
        self, n_targets: int, n_output: int, n_state: int = 0, *, n_hidden: int = 16, n_interaction: int = 8
    ) -> None:
        super().__init__()
        self.n_targets, self.n_output, self.n_state = n_targets, n_output, n_state
        self.mean = nn.Parameter(torch.zeros(n_targets, n_output))
        if n_state:
            self.slope = nn.Parameter(torch.zeros(n_targets, n_state, n_output))
        self.n_hidden = n_hidden if n_state else 0
        if self.n_hidden:
            self.hidden = nn.Linear(n_state, n_hidden)
            self.gate = nn.Parameter(torch.zeros(n_targets, n_hidden, n_output))
        self.n_interaction = n_interaction if n_targets > 1 else 0
        if self.n_interaction:
            self.partner = nn.Parameter(torch.randn(n_targets, n_interaction) / n_interaction**0.5)
            self.interaction_weight = nn.Linear(n_interaction, n_output, bias=False)
            nn.init.zeros_(self.interaction_weight.weight)

    def singles(self, dose: Tensor, state: Tensor | None = None) -> Tensor:
        """Sum of the single effects, shape (n, k), for doses (n, T) and states (n, d)."""
        shift = dose @ self.mean
        if self.n_state and state is not None:
            shift = shift + _per_target(dose, state, self.slope)
            if self.n_hidden:
                shift = shift + _per_target(dose, torch.tanh(self.hidden(state)), self.gate)
        return shift

    def learn_interaction(self, n_combinations: int) -> bool:
        """Train the interaction only where there is enough to learn it from; otherwise it stays where it is.

        The factor of a target says something about its unseen partners once it was seen with several. With fewer
        combinations than targets the factors fit those combinations one by one, and unseen ones get noise.

        Parameters
        ----------
        n_combinations
            Combinations of several targets in the training cells.

        Returns
        -------
        True if the interaction is trained.
        """
        is_learned = bool(self.n_interaction) and n_combinations >= self.n_targets
        if self.n_interaction:
            self.partner.requires_grad_(is_learned)
            self.interaction_weight.requires_grad_(is_learned)
        return is_learned

    def interaction(self, dose: Tensor) -> Tensor:
        """What a combination does beyond the sum, shape (n, k); zero for rows with one target."""
        if not self.n_interaction:
            return dose.new_zeros(dose.shape[0], self.n_output)
        together, alone = (dose @ self.partner).square(), dose.square() @ self.partner.square()
        # rounding would otherwise leave a trace of the pair term in rows that hold no pair
        several = (dose != 0).sum(-1, keepdim=True) > 1
        return self.interaction_weight(0.5 * (together - alone) * several)

    def forward(self, dose: Tensor, state: Tensor | None = None) -> Tensor:
        """Shift of the latent block, shape (n, k); zero for control rows."""
        return self.singles(dose, state) + self.interaction(dose)


def _per_target(dose: Tensor, features: Tensor, weight: Tensor) -> Tensor:
    # (n, T), (n, d), (T, d, k) -> (n, k)
    if weight.shape[0] == 1:
        return dose * (features @ weight[0])
    mixed = (dose @ weight.flatten(1)).view(-1, weight.shape[1], weight.shape[2])
    return torch.bmm(features.unsqueeze(1), mixed).squeeze(1)
