"""Cells driven by a few latent variables with a causal graph among them, the toy world of causal representation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sccausal._errors import SetupError

if TYPE_CHECKING:
    from anndata import AnnData

Graph = Literal["chain", "empty", "random"]


def simulate_latent_sem(
    n_cells: int = 3000,
    n_genes: int = 30,
    n_latent: int = 5,
    *,
    graph: Graph | np.ndarray = "chain",
    intervention: Literal["shift", "do"] = "shift",
    n_per_latent: int = 1,
    n_doubles: int = 0,
    n_off_target: int = 0,
    strength: float = 2.0,
    edge_strength: float = 1.0,
    interaction: float = 0.0,
    control_fraction: float = 0.3,
    mixing: Literal["linear", "mlp"] = "linear",
    noise: float = 0.3,
    absorb_graph: bool = False,
    shuffle: bool = True,
    seed: int = 0,
) -> AnnData:
    r"""Simulate single cells from a latent structural equation model under interventions.

    Latents obey :math:`u = uG + \epsilon`, :math:`\epsilon \sim N(0, I)` (rows of G are sources), and expression is
    :math:`x = f(u) + \text{noise}`. An intervention ``"T3"`` acts on one latent: a shift adds its size to
    :math:`\epsilon_j` and leaves the equation as it is; ``"do"`` also cuts the edges into latent j. The setting is that
    of :cite:p:`Zhang2023dvae`.

    Parameters
    ----------
    n_cells, n_genes, n_latent
        Sizes.
    graph
        ``"chain"``, ``"empty"``, ``"random"`` (each edge of a random order with probability one half), or weights
        (n_latent, n_latent) without cycles.
    intervention
        ``"shift"`` or ``"do"``.
    n_per_latent
        Interventions that act on each latent, with different sizes.
    n_doubles
        Pairs of interventions on different latents, labelled ``"A+B"``.
    n_off_target
        Single interventions (the first ones) that in addition move 10 % of the genes past the latents.
    strength
        Size of the shifts, in standard deviations of :math:`\epsilon`; each is drawn within 25 % of it, with a random
        sign.
    edge_strength
        Size of the edges of a named graph, drawn within 25 % of it, with a random sign.
    interaction
        Standard deviation per gene of what a double does beyond its latents.
    control_fraction
        Share of control cells.
    mixing
        ``"linear"`` or ``"mlp"`` (a leaky layer of full rank, then a linear one).
    noise
        Standard deviation of the noise of a gene, where the genes' own standard deviation is about 1.
    absorb_graph
        Draw the same cells from another model: the graph is empty and the mixing is :math:`f \circ (I - G)^{-1}`. With
        shift interventions the cells are equal, which shows that shifts do not identify the graph.
    shuffle
        Whether the causal order of the latents is hidden by a random order of their numbers.
    seed
        Seed.

    Returns
    -------
    AnnData with expression in ``X`` (cells, genes), ``obs["intervention"]``, the latents in ``obsm["latent"]`` (u) and
    ``obsm["exogenous"]`` (:math:`\epsilon` with its shift), and in ``uns["truth"]``: ``graph`` (n_latent, n_latent),
    ``targets`` (frame: intervention, latent, magnitude), ``kind``.

    Raises
    ------
    sccausal._errors.SetupError
        An argument is out of range, or the graph has a cycle.

    Examples
    --------
    >>> from sccausal.datasets import simulate_latent_sem
    >>> adata = simulate_latent_sem(300, n_genes=10, seed=1)
    >>> adata.obsm["latent"].shape
    (300, 5)
    """
    from anndata import AnnData

    _check(n_cells, n_genes, n_latent, n_per_latent, intervention, mixing, control_fraction)
    streams = np.random.default_rng(seed).spawn(6)
    G = _weights(graph, n_latent, edge_strength, shuffle, streams[0])
    if absorb_graph and intervention == "do":
        raise SetupError("absorb_graph keeps the cells only with intervention='shift': do() cuts the edges.")
    targets = _targets(n_latent, n_per_latent, strength, streams[1])
    names = targets["intervention"].to_numpy()
    dose, labels = _design(n_cells, targets, n_doubles, control_fraction, streams[2])
    exogenous = streams[3].standard_normal((n_cells, n_latent))
    acts = np.zeros((len(names), n_latent))
    acts[np.arange(len(names)), targets["latent"]] = 1.0
    exogenous += dose @ (acts * targets["magnitude"].to_numpy()[:, None])
    hit = (dose @ acts > 0) & (intervention == "do")
    u = _propagate(exogenous, G, hit)
    mean = _mix(u, n_genes, mixing, streams[4])
    mean += _beyond(dose, labels, n_off_target, interaction, strength, n_genes, streams[5])
    x = mean + noise * streams[5].standard_normal(mean.shape)
    truth: dict[str, Any] = {
        "graph": np.zeros_like(G) if absorb_graph else G,
        "targets": targets,
        "kind": intervention,
        "mixing": mixing,
        "seed": seed,
    }
    obs = pd.DataFrame({"intervention": pd.Categorical(labels)}, index=[f"cell_{i}" for i in range(n_cells)])
    adata = AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"G{i:03d}" for i in range(n_genes)]))
    adata.obsm["latent"] = exogenous.copy() if absorb_graph else u
    adata.obsm["exogenous"] = exogenous
    adata.uns["truth"] = truth
    return adata


def _check(
    n_cells: int, n_genes: int, n_latent: int, n_per_latent: int, kind: str, mixing: str, control: float
) -> None:
    if min(n_cells, n_latent, n_per_latent) < 1 or n_genes < n_latent:
        raise SetupError(f"Need at least as many genes as latents and one of each; got {n_genes} and {n_latent}.")
    if kind not in ("shift", "do"):
        raise SetupError(f"Unknown intervention {kind!r}; use 'shift' or 'do'.")
    if mixing not in ("linear", "mlp"):
        raise SetupError(f"Unknown mixing {mixing!r}; use 'linear' or 'mlp'.")
    if not 0 < control < 1:
        raise SetupError(f"control_fraction must be between 0 and 1, got {control}.")


def _weights(graph: Any, d: int, strength: float, shuffle: bool, rng: np.random.Generator) -> np.ndarray:
    if not isinstance(graph, str):
        G = np.array(graph, dtype=float)
        if G.shape != (d, d) or np.abs(np.linalg.matrix_power(G != 0, d)).sum():
            raise SetupError(f"`graph` must be weights ({d}, {d}) without a cycle.")
        return G
    if graph not in ("chain", "empty", "random"):
        raise SetupError(f"Unknown graph {graph!r}; use 'chain', 'empty', 'random' or a matrix of weights.")
    G = rng.uniform(0.75, 1.25, (d, d)) * strength * rng.choice([-1.0, 1.0], (d, d))
    upper = np.triu(np.ones((d, d)), 1)
    draw = rng.random((d, d)) < 0.5
    G *= {"chain": np.eye(d, k=1), "empty": np.zeros((d, d)), "random": upper * draw}[graph]
    order = rng.permutation(d) if shuffle else np.arange(d)
    return G[np.ix_(order, order)]


def _targets(d: int, per_latent: int, strength: float, rng: np.random.Generator) -> pd.DataFrame:
    latent = rng.permutation(np.repeat(np.arange(d), per_latent))
    size = strength * rng.uniform(0.75, 1.25, len(latent)) * rng.choice([-1.0, 1.0], len(latent))
    names = [f"T{i:02d}" for i in range(len(latent))]
    return pd.DataFrame({"intervention": names, "latent": latent, "magnitude": size})


def _design(
    n: int, targets: pd.DataFrame, n_doubles: int, control: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Dose rows (n, T) and labels (n,)."""
    names, latent = targets["intervention"].to_numpy(), targets["latent"].to_numpy()
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names)) if latent[i] != latent[j]]
    if n_doubles > len(pairs):
        raise SetupError(f"There are only {len(pairs)} pairs of interventions on different latents.")
    chosen = [pairs[i] for i in np.sort(rng.choice(len(pairs), n_doubles, replace=False))] if n_doubles else []
    rows = np.zeros((1 + len(names) + len(chosen), len(names)))
    rows[1 : 1 + len(names)] = np.eye(len(names))
    for r, (i, j) in enumerate(chosen, 1 + len(names)):
        rows[r, [i, j]] = 1.0
    text = np.array(["control", *names, *[f"{names[i]}+{names[j]}" for i, j in chosen]], dtype=object)
    n_control = max(1, round(control * n))
    code = np.concatenate([np.zeros(n_control, int), 1 + np.arange(n - n_control) % (len(rows) - 1)])
    code = rng.permutation(code)
    return rows[code], text[code]


def _propagate(exogenous: np.ndarray, G: np.ndarray, hit: np.ndarray) -> np.ndarray:
    u = exogenous.copy()
    for _ in range(len(G)):  # as many rounds as the longest path can have
        u = exogenous + np.where(hit, 0.0, u @ G)
    return u


def _mix(u: np.ndarray, m: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    d = u.shape[1]
    loading = rng.normal(size=(d, m)) / np.sqrt(d)
    if kind == "linear":
        return u @ loading
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    hidden = u @ rotation
    return np.where(hidden > 0, hidden, 0.3 * hidden) @ loading * 1.3


def _beyond(
    dose: np.ndarray,
    labels: np.ndarray,
    n_off_target: int,
    interaction: float,
    strength: float,
    m: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Effects on genes that do not go through the latents (n, m)."""
    direct = np.zeros((dose.shape[1], m))
    for t in range(min(n_off_target, len(direct))):
        genes = rng.choice(m, max(1, m // 10), replace=False)
        direct[t, genes] = strength * rng.choice([-1.0, 1.0], len(genes))
    out = dose @ direct
    if interaction:
        for label in np.unique(labels[(dose > 0).sum(1) > 1].astype(str)):
            out[labels == label] += interaction * rng.standard_normal(m)
    return out
