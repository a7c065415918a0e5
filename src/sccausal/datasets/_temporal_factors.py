"""Factors that move over time under interventions, mixed into many measurements: a test bed of identification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from sccausal._errors import SetupError

if TYPE_CHECKING:
    from anndata import AnnData

Mixing = Literal["linear", "relu", "polynomial"]
CONTROL = "control"
_N_SHAPES = 7
_SLOPE = 0.4
_BURN_IN = 6


class _Dynamics(NamedTuple):
    """How factors aim at goals: ``goal = scale * sin(W z + offset + shape)``, rows of W are sources."""

    weight: np.ndarray  # (d, d)
    offset: np.ndarray  # (d,)
    shape: np.ndarray  # (shapes, d)
    noise: np.ndarray  # (d,)


def simulate_temporal_factors(
    n_cells: int = 3000,
    n_features: int = 64,
    n_times: int = 4,
    *,
    n_invariant: int = 4,
    n_responsive: int = 7,
    n_per_factor: int = 2,
    mixing: Mixing = "relu",
    noise: float = 0.05,
    strength: float = 1.5,
    mean_parents: float = 1.5,
    control_fraction: float | None = None,
    tracked: bool = True,
    seed: int = 0,
) -> AnnData:
    r"""Simulate latent factors with lagged causes, interventions on some of them, and an invertible mixing.

    In the style of the temporal Causal3DIdent benchmark :cite:p:`Lippe2022`, with a random mixing in the place of
    rendered images. Continuous factors move half of the way to a goal that their parents set one step before,

    .. math:: z_{i,t} = z_{i,t-1} + \tfrac12 \bigl(g_i(z_{t-1}, h) - z_{i,t-1}\bigr) + \sigma_i \epsilon_{i,t} ,

    and the shape h of a cell never changes. Invariant factors have invariant parents only. An intervention on a
    responsive factor takes its parents away and puts a new goal and a new noise in their place, so that all its
    descendants may move but no invariant factor does.

    Parameters
    ----------
    n_cells
        Number of trajectories.
    n_features
        Measurements per cell.
    n_times
        Snapshots, at times 0, 1, ...; interventions act from the first step before time 0 on.
    n_invariant, n_responsive
        Numbers of factors; the last invariant factor is the shape.
    n_per_factor
        Interventions per responsive factor. With 2 there are :math:`2 d_s + 1` environments, the fewest that can
        identify :math:`d_s` responsive factors one by one.
    mixing
        ``"linear"``, ``"relu"`` (two invertible leaky layers, then a linear map), or ``"polynomial"`` (linear and
        quadratic terms).
    noise
        Standard deviation of the measurement noise, where each feature has a standard deviation near 1.
    strength
        Size of the new goals.
    mean_parents
        Mean number of lagged parents of a factor beside itself.
    control_fraction
        Share of trajectories without intervention; default as many as under each intervention.
    tracked
        Whether every trajectory is seen at all times (``n_cells * n_times`` rows), which only live imaging or lineage
        records give; otherwise each is seen once, at a random time.
    seed
        Seed.

    Returns
    -------
    AnnData with measurements in ``X`` (rows, n_features), ``obs[intervention, time, track]`` (track: identity of the
    trajectory), true factors in ``obsm["invariant"]`` and ``obsm["responsive"]``, and in ``uns["truth"]``: ``graph``
    (frame source, target, weight: lagged edges between factors), ``targets`` (frame intervention, factor, goal, noise),
    ``responsive`` and ``invariant`` (names of factors).

    Raises
    ------
    sccausal._errors.SetupError
        An argument is out of range.

    Examples
    --------
    >>> from sccausal.datasets import simulate_temporal_factors
    >>> adata = simulate_temporal_factors(60, n_times=3, seed=1)
    >>> adata.shape
    (180, 64)
    >>> adata.obsm["responsive"].shape
    (180, 7)
    """
    from anndata import AnnData

    _check(n_cells, n_features, n_times, n_invariant, n_responsive, n_per_factor, mixing, control_fraction)
    streams = np.random.default_rng(seed).spawn(5)
    d = n_invariant - 1 + n_responsive  # continuous factors; the shape stands apart
    dynamics = _draw_dynamics(d, n_invariant - 1, mean_parents, streams[0])
    targets = _draw_targets(n_invariant - 1, n_responsive, n_per_factor, strength, streams[1])
    n_env = len(targets) + 1
    share = 1 / n_env if control_fraction is None else control_fraction
    code = _environments(n_cells, len(targets), share, streams[2])
    z, shape = _run(dynamics, targets, code, n_times, streams[3])
    if tracked:
        time = np.tile(np.arange(n_times), n_cells)
        track = np.repeat(np.arange(n_cells), n_times)
    else:
        time, track = streams[2].integers(0, n_times, n_cells), np.arange(n_cells)
    state = np.column_stack([z[track, time], shape[track]])
    x = _mixed(state, n_features, mixing, streams[4])
    x += noise * streams[4].standard_normal(x.shape)
    names = _names(n_invariant, n_responsive)
    labels = np.array([CONTROL, *targets["intervention"]], dtype=object)[code[track]]
    obs = pd.DataFrame(
        {"intervention": pd.Categorical(labels), "time": time.astype(float), "track": [f"track_{i}" for i in track]},
        index=pd.Index([f"cell_{i}_{t}" for i, t in zip(track, time, strict=True)]),
    )
    var = pd.DataFrame(index=pd.Index([f"F{i:03d}" for i in range(n_features)]))
    adata = AnnData(x.astype(np.float32), obs=obs, var=var)
    own = np.r_[np.arange(n_invariant - 1), d]  # the shape is the last column of the state
    adata.obsm["invariant"] = state[:, own]
    adata.obsm["responsive"] = state[:, n_invariant - 1 : d]
    adata.uns["truth"] = {
        "graph": _edges(dynamics, names),
        "targets": targets.assign(factor=[names[k] for k in targets["factor"]]),
        "invariant": [names[k] for k in own],
        "responsive": names[n_invariant - 1 : d],
        "mixing": mixing,
        "seed": seed,
    }
    return adata


def _check(
    n_cells: int, n_features: int, n_times: int, n_c: int, n_s: int, per: int, mixing: str, control: float | None
) -> None:
    if mixing not in ("linear", "relu", "polynomial"):
        raise SetupError(f"Unknown mixing {mixing!r}; use 'linear', 'relu' or 'polynomial'.")
    if n_c < 2 or n_s < 1 or per < 1 or n_times < 2:
        raise SetupError(
            "Need n_invariant >= 2 (one factor and the shape), n_responsive >= 1, n_per_factor >= 1 and n_times >= 2; "
            f"got {n_c}, {n_s}, {per} and {n_times}."
        )
    if n_features < n_c + n_s:
        raise SetupError(f"{n_features} features cannot hold {n_c + n_s} factors.")
    if n_cells < n_s * per + 1:
        raise SetupError(f"{n_cells} trajectories cannot cover {n_s * per + 1} environments.")
    if control is not None and not 0 < control < 1:
        raise SetupError(f"control_fraction must be between 0 and 1, got {control}.")


def _names(n_c: int, n_s: int) -> list[str]:
    """Names in the order of the state: invariant, responsive, shape."""
    return [*(f"invariant_{i}" for i in range(n_c - 1)), *(f"responsive_{i}" for i in range(n_s)), "shape"]


def _draw_dynamics(d: int, n_c: int, mean_parents: float, rng: np.random.Generator) -> _Dynamics:
    allowed = np.ones((d, d)) - np.eye(d)
    allowed[n_c:, :n_c] = 0  # nothing responsive acts on an invariant factor
    chance = np.minimum(1.0, mean_parents / np.maximum(allowed.sum(0), 1))
    edges = (rng.random((d, d)) < chance) * allowed
    weight = edges * rng.uniform(0.8, 1.6, (d, d)) * rng.choice([-1.0, 1.0], (d, d))
    shape = rng.normal(0, 0.6, (_N_SHAPES, d))
    return _Dynamics(weight, rng.uniform(-np.pi, np.pi, d), shape, rng.uniform(0.25, 0.4, d))


def _draw_targets(n_c: int, n_s: int, per: int, strength: float, rng: np.random.Generator) -> pd.DataFrame:
    factor = np.repeat(np.arange(n_c, n_c + n_s), per)
    sign = np.tile(np.where(np.arange(per) % 2 == 0, 1.0, -1.0), n_s)
    goal = strength * rng.uniform(0.7, 1.3, len(factor)) * sign
    noise = rng.choice([0.15, 0.6], len(factor))
    names = [f"do_{f - n_c}_{k}" for f, k in zip(factor, np.tile(np.arange(per), n_s), strict=True)]
    return pd.DataFrame({"intervention": names, "factor": factor, "goal": goal, "noise": noise})


def _environments(n: int, n_targets: int, control: float, rng: np.random.Generator) -> np.ndarray:
    n_control = max(1, min(n - n_targets, round(control * n)))
    code = np.r_[np.zeros(n_control, int), 1 + np.arange(n - n_control) % n_targets]
    return rng.permutation(code)


def _run(
    dynamics: _Dynamics, targets: pd.DataFrame, code: np.ndarray, n_times: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Factors (cells, times, d) and the scaled shape of each cell."""
    d, n = len(dynamics.offset), len(code)
    kind = rng.integers(0, _N_SHAPES, n)
    z = rng.normal(0, 0.7, (n, d))
    factor, goal, noise = (targets[k].to_numpy() for k in ("factor", "goal", "noise"))
    hit = np.flatnonzero(code)
    out = np.empty((n, n_times, d))
    for step in range(-_BURN_IN, n_times):
        aim = np.sin(z @ dynamics.weight + dynamics.offset + dynamics.shape[kind])
        spread = np.broadcast_to(dynamics.noise, (n, d)).copy()
        if step >= 0:
            which = code[hit] - 1
            aim[hit, factor[which]], spread[hit, factor[which]] = goal[which], noise[which]
        z = z + 0.5 * (aim - z) + spread * rng.standard_normal((n, d))
        if step >= 0:
            out[:, step] = z
    return out, (kind - (_N_SHAPES - 1) / 2) / 2.0


def _mixed(state: np.ndarray, m: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    d = state.shape[1]
    h = (state - state.mean(0)) / state.std(0).clip(1e-9)
    if kind == "relu":
        for _ in range(2):
            h = h @ np.linalg.qr(rng.normal(size=(d, d)))[0] + 0.3 * rng.standard_normal(d)
            h = np.where(h > 0, h, _SLOPE * h)
    elif kind == "polynomial":
        pairs = np.triu_indices(d)
        square = h[:, pairs[0]] * h[:, pairs[1]]
        square = (square - square.mean(0)) / square.std(0)
        # the linear part dominates, so that the map can be inverted where cells are
        h = np.column_stack([h, 0.15 * square])
    x = h @ (rng.normal(size=(h.shape[1], m)) / np.sqrt(d))
    return (x - x.mean(0)) / x.std(0).mean()


def _edges(dynamics: _Dynamics, names: list[str]) -> pd.DataFrame:
    source, target = np.nonzero(dynamics.weight)
    frame = pd.DataFrame(
        {
            "source": [names[i] for i in source],
            "target": [names[j] for j in target],
            "weight": dynamics.weight[source, target],
        }
    )
    # a cell's shape moves the goals of all factors
    d = len(dynamics.offset)
    own = pd.DataFrame({"source": "shape", "target": names[:d], "weight": dynamics.shape.std(0)})
    return pd.concat([frame, own], ignore_index=True)
