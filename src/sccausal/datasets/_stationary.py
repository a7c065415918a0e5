"""Cells drawn from the stationary law of a stochastic differential equation under perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sccausal._errors import SetupError

if TYPE_CHECKING:
    from anndata import AnnData

Kinetics = Literal["linear", "hill"]
Measurement = Literal["none", "gaussian", "zip"]


def simulate_stationary(
    n_genes: int = 30,
    *,
    kinetics: Kinetics = "linear",
    n_perturbed: int | None = None,
    n_doubles: int = 0,
    n_cells: int = 200,
    n_control: int | None = None,
    graph: Literal["er", "scale_free"] = "er",
    degree: float = 3.0,
    strength: tuple[float, float] = (5.0, 15.0),
    knockdown: float = 0.2,
    measurement: Measurement = "none",
    noise_ratio: float = 1.0,
    dropout: float = 0.1,
    depth: float = 5.0,
    seed: int = 0,
) -> AnnData:
    r"""Simulate perturbed cells in the stationary state of :math:`dx = f(x)\,dt + \sqrt 2\,D\,dW`.

    Cycles in the network are allowed. The linear setting is that of :cite:p:`Lorch2026`.

    Parameters
    ----------
    n_genes
        Genes d; each may be perturbed by itself.
    kinetics
        ``"linear"``: :math:`f = A x + b`, unit diffusion; a perturbation adds to the drift of its gene, with a random
        sign, and states are drawn from the exact Gaussian law. ``"hill"``: production
        :math:`\beta_i\,\sigma(\theta_i + \sum_j w_{ji} h(x_j))` with saturating h, first-order decay; a perturbation
        multiplies the production of its gene by ``knockdown``; simulated by Euler and Maruyama, so that effects do not
        add up.
    n_perturbed
        Genes that are perturbed alone; default all.
    n_doubles
        Random pairs of perturbed genes that are perturbed together, labelled ``"A+B"``.
    n_cells, n_control
        Cells per perturbation, and control cells (default as many as of a perturbation).
    graph, degree
        Random network (each gene has ``degree`` regulators on average), or one with hubs.
    strength
        Range of the sizes of linear perturbations.
    knockdown
        Share of the production that a Hill perturbation leaves.
    measurement
        What ``X`` holds: the states (``"none"``), states with Gaussian noise (``"gaussian"``), or counts that are
        Poisson at a rate that grows with the state, some of them lost (``"zip"``).
    noise_ratio
        With ``"gaussian"``: standard deviation of the noise over that of the state, gene by gene.
    dropout
        With ``"zip"``: probability with which a count is lost.
    depth
        With ``"zip"``: mean count of a gene at its control state.
    seed
        Seed.

    Returns
    -------
    AnnData with ``obs["intervention"]`` (``"control"``, ``"G003"``, ``"G003+G010"``), states in ``layers["state"]``,
    for counts also ``layers["counts"]``, and in ``uns["truth"]``:

    - ``adjacency``: genes x genes, rows are sources; weights of the linear drift or of the regulation;
    - ``drift`` (rows are targets), ``shifts`` and ``covariance``: linear kinetics only;
    - ``bias``: the constant part of the drift, or of the drive;
    - ``means``: frame intervention x genes; exact for linear kinetics, else of the cells;
    - ``unit`` and ``pi``: scale of the rates and probability of loss, counts only.

    Raises
    ------
    sccausal._errors.SetupError
        An argument is out of range.

    Examples
    --------
    >>> from sccausal.datasets import simulate_stationary
    >>> adata = simulate_stationary(8, n_cells=50, seed=1)
    >>> adata.n_obs
    450
    """
    from anndata import AnnData

    n_perturbed = n_genes if n_perturbed is None else n_perturbed
    _check(n_genes, n_perturbed, n_doubles, n_cells, kinetics, measurement, graph, degree, dropout)
    streams = np.random.default_rng(seed).spawn(5)
    genes = [f"G{i:03d}" for i in range(n_genes)]
    targets, labels = _design(genes, n_perturbed, n_doubles, streams[0])
    code = np.concatenate([np.zeros(n_control or n_cells, int), np.repeat(np.arange(1, len(targets)), n_cells)])
    adjacency = _graph(n_genes, graph, degree, streams[1])
    if kinetics == "linear":
        states, truth = _linear(adjacency, targets, code, strength, streams[2])
    else:
        states, truth = _hill(adjacency, targets, code, knockdown, streams[2])
    truth["means"] = pd.DataFrame(truth["means"], index=labels, columns=genes)
    obs = pd.DataFrame(
        {"intervention": pd.Categorical(np.asarray(labels, dtype=object)[code], categories=labels)},
        index=[f"cell_{i}" for i in range(len(code))],
    )
    values, measured = _measure(states, code, measurement, noise_ratio, dropout, depth, kinetics, streams[3])
    adata = AnnData(values.astype(np.float32), obs=obs, var=pd.DataFrame(index=pd.Index(genes, dtype=object)))
    adata.layers["state"] = states.astype(np.float32)
    if measurement == "zip":
        adata.layers["counts"] = adata.X.copy()
    adata.uns["truth"] = {**truth, **measured, "kinetics": kinetics, "measurement": measurement, "seed": seed}
    return adata


def _check(
    d: int, k: int, doubles: int, n: int, kinetics: str, measurement: str, graph: str, degree: float, dropout: float
) -> None:
    if d < 2 or not 1 <= k <= d or n < 2:
        raise SetupError(f"Need 2 genes or more, 1 to {d} of them perturbed, 2 cells or more; got {d}, {k}, {n}.")
    for name, value, known in (
        ("kinetics", kinetics, ("linear", "hill")),
        ("measurement", measurement, ("none", "gaussian", "zip")),
        ("graph", graph, ("er", "scale_free")),
    ):
        if value not in known:
            raise SetupError(f"Unknown {name} {value!r}; use one of {', '.join(map(repr, known))}.")
    if doubles > k * (k - 1) // 2:
        raise SetupError(f"There are only {k * (k - 1) // 2} pairs of {k} perturbed genes.")
    if not 0 <= degree <= d - 1 or not 0 <= dropout < 1:
        raise SetupError(f"degree lies in [0, {d - 1}] and dropout in [0, 1); got {degree} and {dropout}.")


def _design(
    genes: list[str], n_perturbed: int, n_doubles: int, rng: np.random.Generator
) -> tuple[list[tuple[int, ...]], list[str]]:
    """Targets of each environment, control first, and its label."""
    chosen = np.sort(rng.choice(len(genes), n_perturbed, replace=False))
    pairs = [(i, j) for k, i in enumerate(chosen) for j in chosen[k + 1 :]]
    drawn: Any = np.sort(rng.choice(len(pairs), n_doubles, replace=False)) if n_doubles else []
    targets: list[tuple[int, ...]] = [(), *((int(i),) for i in chosen), *(tuple(map(int, pairs[p])) for p in drawn)]
    return targets, ["control", *("+".join(genes[i] for i in t) for t in targets[1:])]


def _graph(d: int, kind: str, degree: float, rng: np.random.Generator) -> np.ndarray:
    """Signed weights (d, d), rows are sources, no self edges."""
    chance = np.full((d, d), degree / max(d - 1, 1))
    if kind == "scale_free":
        size = (1 + np.arange(d)) ** -1.0
        chance *= (rng.permutation(size) / size.mean())[:, None]
    edge = rng.random((d, d)) < np.minimum(chance, 1.0)
    np.fill_diagonal(edge, False)
    return edge * rng.uniform(1, 3, (d, d)) * rng.choice([-1.0, 1.0], (d, d))


def _linear(
    adjacency: np.ndarray,
    targets: list[tuple[int, ...]],
    code: np.ndarray,
    strength: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, dict[str, Any]]:
    from scipy.linalg import solve_continuous_lyapunov

    d = len(adjacency)
    drift = adjacency.T.copy()
    drift -= (np.linalg.eigvals(drift).real.max() + 0.5) * np.eye(d)
    bias = rng.uniform(-3, 3, d)
    size = rng.uniform(*strength, d) * rng.choice([-1.0, 1.0], d)
    shifts = np.zeros((len(targets), d))
    for k, own in enumerate(targets):
        shifts[k, list(own)] = size[list(own)]
    means = -np.linalg.solve(drift, (bias + shifts).T).T
    covariance = solve_continuous_lyapunov(drift, -2 * np.eye(d))
    covariance = (covariance + covariance.T) / 2
    states = means[code] + rng.standard_normal((len(code), d)) @ np.linalg.cholesky(covariance).T
    truth = {
        "adjacency": adjacency, "drift": drift, "bias": bias, "shifts": shifts, "covariance": covariance, "means": means
    }  # fmt: skip
    return states, truth


def _hill(
    adjacency: np.ndarray,
    targets: list[tuple[int, ...]],
    code: np.ndarray,
    knockdown: float,
    rng: np.random.Generator,
    *,
    step: float = 0.05,
    duration: float = 25.0,
    noise: float = 0.15,
) -> tuple[np.ndarray, dict[str, Any]]:
    d = len(adjacency)
    level = rng.uniform(1.0, 3.0, d)
    # at half saturation the regulators cancel, so that no gene starts fully off
    offset = rng.normal(0, 0.3, d) - 0.5 * adjacency.sum(axis=0)
    production = np.ones((len(targets), d))
    for k, own in enumerate(targets):
        production[k, list(own)] = knockdown
    beta = (2 * level * production)[code]
    x = np.tile(level, (len(code), 1))
    root = noise * np.sqrt(2 * step) * level
    for _ in range(round(duration / step)):
        ratio = np.square(x / level)
        drive = (ratio / (1 + ratio)) @ adjacency + offset
        x = x + step * (beta / (1 + np.exp(-drive)) - x) + root * rng.standard_normal(x.shape)
        np.abs(x, out=x)  # reflected at zero
    means = np.stack([x[code == k].mean(axis=0) for k in range(len(targets))])
    return x, {"adjacency": adjacency, "bias": offset, "means": means, "level": level}


def _measure(
    states: np.ndarray,
    code: np.ndarray,
    kind: str,
    ratio: float,
    dropout: float,
    depth: float,
    kinetics: str,
    rng: np.random.Generator,
) -> tuple[np.ndarray, dict[str, Any]]:
    if kind == "none":
        return states, {}
    control = states[code == 0]
    spread = control.std(axis=0)
    if kind == "gaussian":
        return states + ratio * spread * rng.standard_normal(states.shape), {}
    # counts need rates: the states of Hill kinetics are levels, those of a linear equation have any sign
    if kinetics == "hill":
        unit = depth / control.mean(axis=0)
        rate = states * unit
    else:
        unit = np.full(states.shape[1], depth / np.log(2.0))
        rate = unit * np.logaddexp(0.0, (states - control.mean(axis=0)) / spread)
    pi = np.full(states.shape[1], dropout)
    counts = rng.poisson(rate) * (rng.random(states.shape) >= pi)
    return counts.astype(np.float64), {"unit": unit, "pi": pi}
