"""Cells whose annotated concepts cause each other, with the counterfactual of every cell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import FileFormatError, SetupError, unknown_name
from sccausal.datasets._counts import poisson_quantile, stream

if TYPE_CHECKING:
    from anndata import AnnData

CONCEPT_VERSION = 1
"""Raised whenever the same arguments and seed give other cells."""

CONCEPT_DAG = {"b": ["a"], "c": ["a"], "d": ["b"]}
"""Parents of each concept of :func:`simulate_concepts`; ``a`` and ``age`` have none."""
_LEVELS = {"a": 2, "b": 2, "c": 3, "d": 3}
# what a level would be if it were all up to the parent: rows are levels of the parent
_PULL = {
    "b": np.array([[1.0, 0.0], [0.0, 1.0]]),
    "c": np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]),
    "d": np.array([[0.8, 0.15, 0.05], [0.05, 0.15, 0.8]]),
}
_AGES = (20.0, 80.0)


@dataclass(frozen=True)
class _Parameters:
    n_cells: int
    n_genes: int
    correlation: float
    n_donors: int
    strength: float
    affected: float
    state: float
    donor_strength: float
    library_size: float
    dispersion: float
    age_levels: int
    age_by: str
    system_seed: int
    seed: int


@dataclass(frozen=True, eq=False)
class _Mechanism:
    """What does not depend on the cells: genes x ... arrays."""

    basal: np.ndarray  # log rates (genes,)
    programmes: np.ndarray  # (genes, states)
    drive: dict[str, np.ndarray]  # concept -> (levels, genes), up positive, down negative
    amplitude: np.ndarray  # (genes,) largest fold
    donor: np.ndarray  # (donors, genes)


@dataclass(frozen=True, eq=False)
class _Noise:
    label: dict[str, np.ndarray]  # uniform quantiles of the labels (cells,)
    donor: np.ndarray
    state: np.ndarray  # (cells, states)
    gain: np.ndarray  # (cells, concepts)
    library: np.ndarray
    age: np.ndarray


def simulate_concepts(
    n_cells: int = 3000,
    n_genes: int = 400,
    *,
    correlation: float = 0.6,
    intervention: Mapping[str, Any] | None = None,
    n_donors: int = 4,
    strength: float = 3.0,
    affected: float = 0.15,
    state: float = 0.5,
    donor_strength: float = 0.15,
    library_size: float = 4000.0,
    dispersion: float = 0.2,
    age_levels: int = 4,
    age_by: str = "cell",
    system_seed: int | None = None,
    seed: int = 0,
) -> AnnData:
    r"""Simulate counts of cells with concepts ``a -> b -> d`` and ``a -> c``, beside ``age`` and donors.

    Labels are quantiles of kept uniform noise under conditional probabilities. They act on overlapping sets of genes
    through saturating drives whose strength differs between cells, so that effects depend on the cell and on the other
    concepts. All noise of a cell is kept: the same cell is known under any other values of the concepts.

    Parameters
    ----------
    n_cells, n_genes
        Size.
    correlation
        Dependence of a child on its parent in [0, 1]; between ``a`` and ``b`` it is the correlation (phi).
    intervention
        What ``layers["counterfactual"]`` shows, concept -> value; default ``{"a": "a1"}``.
    n_donors
        Donors, crossed with all concepts.
    strength
        Mean of the largest fold of an affected gene, minus 1.
    affected
        Share of genes each concept acts on directly.
    state
        Standard deviation of log-rates along hidden programmes of the cell.
    donor_strength
        Standard deviation of donor effects on log-rates.
    library_size, dispersion
        Mean counts of a cell, and overdispersion of the counts.
    age_levels
        Ages at which cells are observed, evenly spread from 20 to 80; 0 leaves age continuous.
    age_by
        ``"cell"``: every cell has its own age; ``"donor"``: all cells of a donor share one.
    system_seed
        Seed of genes and effects, apart from the cells; default ``seed``.
    seed
        Seed.

    Returns
    -------
    AnnData with counts in ``X`` and ``layers["counts"]``; ``layers["mean"]`` = expected counts;
    ``layers["counterfactual"]`` and ``layers["counterfactual_mean"]`` = counts of the same cells, with the same noise,
    under ``intervention``, and their expectation; ``obs`` with ``a``, ``b``, ``c``, ``d``, ``age``, ``donor``,
    ``cell_index`` and ``<concept>_counterfactual``; ``var["acts_<concept>"]`` = genes a concept acts on directly;
    ``uns["truth"]`` = DAG and parameters, from which :func:`concept_counterfactual` answers any other intervention.

    Raises
    ------
    SetupError
        An argument is out of its range.

    Examples
    --------
    >>> from sccausal.datasets import simulate_concepts
    >>> adata = simulate_concepts(200, 50, seed=1)
    >>> sorted(adata.obs["c"].unique())
    ['c0', 'c1', 'c2']
    """
    p = _Parameters(
        int(n_cells), int(n_genes), float(correlation), int(n_donors), float(strength), float(affected), float(state),
        float(donor_strength), float(library_size), float(dispersion), int(age_levels), age_by,
        seed if system_seed is None else int(system_seed), int(seed),
    )  # fmt: skip
    _check(p)
    mechanism = _build(p)
    factual, mean, counts = _observe(p, mechanism, {}, np.arange(p.n_cells))
    asked = _checked_do({"a": "a1"} if intervention is None else intervention)
    labels, other_mean, other = _observe(p, mechanism, asked, np.arange(p.n_cells))
    adata = _assemble(p, mechanism, factual, counts)
    adata.layers["mean"] = mean
    adata.layers["counterfactual"], adata.layers["counterfactual_mean"] = other, other_mean
    for name in (*_LEVELS, "age"):
        adata.obs[f"{name}_counterfactual"] = labels[name].to_numpy()
    adata.uns["truth"]["intervention"] = {k: str(v) for k, v in asked.items()}
    return adata


def concept_counterfactual(adata: AnnData, do: Mapping[str, Any]) -> AnnData:
    """Answer what cells of :func:`simulate_concepts` would have shown had concepts been set to other values.

    Parameters
    ----------
    adata
        What :func:`simulate_concepts` returned, or any of its cells and genes.
    do
        Concept -> level (``"b1"``) or age; several at once. What is downstream follows with the cell's own noise.

    Returns
    -------
    AnnData with the cells and genes of ``adata``: counts in ``X`` and ``layers["counts"]``, their expectation in
    ``layers["mean"]``, ``obs`` with the concepts after the intervention. Asked for nothing it gives the factual counts.

    Raises
    ------
    SetupError
        ``adata`` was not made by :func:`simulate_concepts`.
    UnknownNameError
        A concept or level is not known.
    FileFormatError
        The cells come from another version of the simulator.

    Examples
    --------
    >>> from sccausal.datasets import concept_counterfactual, simulate_concepts
    >>> adata = simulate_concepts(100, 30)
    >>> bool((concept_counterfactual(adata, {}).X == adata.X).all())
    True
    """
    truth = adata.uns.get("truth")
    if not isinstance(truth, Mapping) or "concepts" not in truth or "cell_index" not in adata.obs:
        raise SetupError("Counterfactuals of concepts need data of simulate_concepts: uns['truth']['concepts'].")
    if int(truth["version"]) != CONCEPT_VERSION:
        raise FileFormatError(
            f"The cells come from version {truth['version']} of the simulator, this is version {CONCEPT_VERSION}; "
            "simulate anew."
        )
    p = _Parameters(**json.loads(str(truth["concepts"])))
    mechanism = _build(p)
    cells = adata.obs["cell_index"].to_numpy().astype(int)
    labels, mean, counts = _observe(p, mechanism, _checked_do(do), cells)
    out = _assemble(p, mechanism, labels, counts)
    out.layers["mean"] = mean
    out.obs_names = adata.obs_names.copy()
    out.obs["cell_index"] = cells
    return out[:, list(adata.var_names)].copy()


def _check(p: _Parameters) -> None:
    if p.n_cells < 1 or p.n_genes < 10 or p.n_donors < 1 or p.age_levels < 0 or p.age_levels == 1:
        raise SetupError("Needed: n_cells >= 1, n_genes >= 10, n_donors >= 1, age_levels 0 or at least 2.")
    for name, low, high in (("correlation", 0, 1), ("affected", 0, 0.5)):
        if not low <= getattr(p, name) <= high:
            raise SetupError(f"{name} must be in [{low}, {high}]; got {getattr(p, name)}.")
    for name in ("strength", "state", "donor_strength", "dispersion"):
        if getattr(p, name) < 0:
            raise SetupError(f"{name} must not be negative; got {getattr(p, name)}.")
    if p.library_size <= 0:
        raise SetupError(f"library_size must be positive; got {p.library_size}.")
    if p.age_by not in ("cell", "donor"):
        raise unknown_name("value of age_by", p.age_by, ("cell", "donor"))


def _checked_do(do: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in do.items():
        if name == "age":
            out[name] = float(value)
            continue
        if name not in _LEVELS:
            raise unknown_name("concept", str(name), [*_LEVELS, "age"], "the simulation")
        levels = [f"{name}{k}" for k in range(_LEVELS[name])]
        if value not in levels:
            raise unknown_name("level", str(value), levels, f"the concept {name!r}")
        out[name] = levels.index(value)
    return out


def _build(p: _Parameters) -> _Mechanism:
    rng = stream(p.system_seed, "concept system")
    g = p.n_genes
    basal = rng.normal(0.0, 1.0, g)
    programmes = rng.normal(size=(g, 3)) * (rng.random((g, 3)) < 0.4)
    drive = {}
    for name, levels in {**_LEVELS, "age": 1}.items():
        hit = rng.random(g) < p.affected
        sign = rng.choice([-1.0, 1.0], g, p=[0.35, 0.65])
        size = rng.gamma(4.0, 0.3, g)
        if levels <= 2:
            steps = np.stack([np.zeros(g), np.ones(g)])[-max(levels, 1) :]
        elif name == "d":  # ordered: the middle lies between, not always half-way
            steps = np.stack([np.zeros(g), rng.uniform(0.2, 0.8, g), np.ones(g)])
        else:  # each level has genes of its own
            own = rng.integers(0, levels, g)
            steps = np.stack([(own == k).astype(float) for k in range(levels)])
        drive[name] = steps * (hit * sign * size)
    amplitude = p.strength * rng.gamma(6.0, 1 / 6.0, g)
    donor = rng.normal(0.0, 1.0, (p.n_donors, g))
    return _Mechanism(basal, programmes, drive, amplitude, p.donor_strength * donor)


def _draw(p: _Parameters) -> _Noise:
    rng = stream(p.seed, "concept cells")
    label = {name: rng.random(p.n_cells) for name in _LEVELS}
    donor = rng.permutation(np.arange(p.n_cells) % p.n_donors)
    state = rng.normal(size=(p.n_cells, 3))
    gain = np.exp(0.5 * rng.normal(size=(p.n_cells, len(_LEVELS) + 1)))
    library = np.exp(0.3 * rng.normal(size=p.n_cells))
    age = rng.random(p.n_cells)
    if p.age_by == "donor":
        age = ((np.arange(p.n_donors) + 0.5) / p.n_donors)[donor]
    return _Noise(label, donor, state, gain, library, age)


def _labels(p: _Parameters, noise: _Noise, do: Mapping[str, Any]) -> pd.DataFrame:
    """Codes of the concepts, parents before children."""
    codes: dict[str, np.ndarray] = {}
    for name, levels in _LEVELS.items():
        above = CONCEPT_DAG.get(name)
        even = np.full((p.n_cells, levels), 1 / levels)
        if above:
            even = (1 - p.correlation) * even + p.correlation * _PULL[name][codes[above[0]]]
        drawn = (noise.label[name][:, None] > np.cumsum(even, axis=1)[:, :-1]).sum(axis=1)
        codes[name] = np.full(p.n_cells, do[name]) if name in do else drawn
    low, high = _AGES
    if p.age_levels:
        step = np.minimum((noise.age * p.age_levels).astype(int), p.age_levels - 1)
        codes["age"] = low + step * (high - low) / (p.age_levels - 1)
    else:
        codes["age"] = low + noise.age * (high - low)
    if "age" in do:
        codes["age"] = np.full(p.n_cells, do["age"])
    return pd.DataFrame(codes)


def _hill(x: np.ndarray) -> np.ndarray:
    return x**2 / (1 + x**2)


def _observe(
    p: _Parameters, m: _Mechanism, do: Mapping[str, Any], cells: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Labels, expected counts and counts of chosen cells."""
    noise = _draw(p)
    codes = _labels(p, noise, do)
    up = np.zeros((len(cells), p.n_genes))
    down = np.zeros_like(up)
    for k, name in enumerate((*_LEVELS, "age")):
        value = codes[name].to_numpy()[cells]
        if name == "age":  # old age counts more than young age
            x = 2.0 * _hill(np.maximum(value - 10.0, 0.0) / 40.0)[:, None] * m.drive["age"]
        else:
            x = m.drive[name][value.astype(int)]
        x = x * noise.gain[cells, k][:, None]
        up += np.maximum(x, 0)
        down += np.maximum(-x, 0)
    states = p.state * np.tanh(noise.state[cells] @ m.programmes.T)
    rate = np.exp(m.basal + states + m.donor[noise.donor[cells]])
    rate *= (1 + m.amplitude * _hill(up)) / (1 + m.amplitude * _hill(down))
    # an efficient machinery is shared: expression is relative, depth is the cell's own
    mean = p.library_size * noise.library[cells][:, None] * rate / rate.sum(axis=1, keepdims=True)
    counts = np.empty_like(mean, dtype=np.float32)
    for row, cell in enumerate(cells):
        rng = stream(p.seed, "concept counts", int(cell))
        burst = np.ones(p.n_genes)
        if p.dispersion > 0:
            burst = rng.standard_gamma(1 / p.dispersion, p.n_genes) * p.dispersion
        counts[row] = poisson_quantile(rng.random(p.n_genes), mean[row] * burst)
    shown = pd.DataFrame(
        {n: pd.Categorical([f"{n}{k}" for k in codes[n].to_numpy()[cells]],
                           categories=[f"{n}{k}" for k in range(levels)]) for n, levels in _LEVELS.items()}
    )  # fmt: skip
    shown["age"] = codes["age"].to_numpy()[cells]
    shown["donor"] = pd.Categorical([f"donor{k}" for k in noise.donor[cells]])
    return shown, mean.astype(np.float32), counts


def _assemble(p: _Parameters, m: _Mechanism, labels: pd.DataFrame, counts: np.ndarray) -> AnnData:
    from anndata import AnnData

    obs = labels.set_index(pd.Index([f"cell{i}" for i in range(len(labels))]))
    obs["cell_index"] = np.arange(len(labels))
    var = pd.DataFrame(index=pd.Index([f"G{i:04d}" for i in range(p.n_genes)]))
    for name, drive in m.drive.items():
        var[f"acts_{name}"] = np.abs(drive).max(axis=0) > 0
    adata = AnnData(counts, obs=obs, var=var)
    adata.layers["counts"] = counts.copy()
    edges = [(i, j) for j, above in CONCEPT_DAG.items() for i in above]
    adata.uns["truth"] = {
        "dag": pd.DataFrame(edges, columns=["source", "target"]),
        "concepts": json.dumps(asdict(p)),
        "version": CONCEPT_VERSION,
    }
    return adata
