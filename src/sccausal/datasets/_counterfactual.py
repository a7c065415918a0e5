"""The same simulated cells under another intervention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sccausal._errors import FileFormatError, SetupError, unknown_name
from sccausal.datasets._parameters import KINDS, VERSION, Parameters
from sccausal.datasets._perturb_seq import assemble
from sccausal.datasets._response import Treatment, factual, respond
from sccausal.datasets._system import CONTROL, SEP, STIMULATED, System, build_system, categorical, sample_design

if TYPE_CHECKING:
    from anndata import AnnData

Intervention = str | Sequence[str] | Mapping[str, float]


def simulate_counterfactual(
    adata: AnnData,
    intervention: Intervention | pd.Series | None = None,
    *,
    kind: str | None = None,
    dose: float | None = None,
    condition: str | None = None,
    time: float | None = None,
) -> AnnData:
    """Answer what the cells of a simulation would have shown, with the same noise, under something else.

    Parameters
    ----------
    adata
        What :func:`simulate_perturb_seq` returned, or any cells and genes of it in any order.
    intervention
        For all cells: ``"control"``, ``"A"``, ``"A+B"``, ``("A", "B")`` or doses ``{"A": 0.5}``, with any genes of
        the simulation. A Series of labels gives each cell (by ``obs_names``) its own. None keeps what each cell had.
    kind
        Kind of intervention on all named genes; default: that of the simulation (targets keep theirs, other genes
        take the first kind).
    dose
        Factor on the dose; default: the cell's own dose if ``intervention`` is None, else 1.
    condition
        ``"control"`` or ``"stimulated"``; default: what each cell had.
    time
        Time of observation; default: what each cell had. Only for simulations with times.

    Returns
    -------
    AnnData with the cells and genes of ``adata``: counts in ``X`` and ``layers["counts"]``, their expectation in
    ``layers["mean"]``, ``obs`` with the new intervention, dose, condition and time. Asked for the factual
    intervention it returns the factual counts exactly.

    Raises
    ------
    SetupError
        If ``adata`` holds no simulation, or an argument does not fit it.
    UnknownNameError
        If a gene, kind or condition is not known.
    FileFormatError
        If the simulation was made by a version that drew other cells from the same seed.

    Examples
    --------
    >>> from sccausal.datasets import simulate_counterfactual, simulate_perturb_seq
    >>> adata = simulate_perturb_seq(n_cells=100, n_genes=40, n_targets=3, seed=1)
    >>> same = simulate_counterfactual(adata)
    >>> bool(abs(same.X - adata.X).sum() == 0)
    True
    """
    system, design = _restore(adata)
    treatment = factual(system, design)
    obs = design.copy()
    if intervention is not None or kind is not None:
        asked = design["intervention"].astype(str) if intervention is None else intervention
        actions, action, labels = _parse(system, asked, kind, adata)
        per_cell = np.full(len(design), 1.0 if dose is None else float(dose))
        if intervention is None and dose is None:
            per_cell = np.where(treatment.dose > 0, treatment.dose, 1.0)
        treatment = Treatment(actions, action, per_cell, treatment.stimulated, treatment.time)
        obs["intervention"] = categorical(action, labels)
        strongest = np.array([max((d for _, d in a.values()), default=0.0) for a in actions])
        obs["dose"] = strongest[action] * per_cell
    elif dose is not None:
        per_cell = np.full(len(design), float(dose))
        treatment = Treatment(treatment.actions, treatment.action, per_cell, treatment.stimulated, treatment.time)
        obs["dose"] = np.where(obs["intervention"] == CONTROL, 0.0, per_cell)
    treatment = _with_condition(treatment, obs, condition)
    treatment = _with_time(treatment, obs, time)
    (response,) = respond(system, design, [treatment])
    result = assemble(system, obs, response)[:, list(adata.var_names)].copy()
    result.uns["truth"] = adata.uns["truth"]
    return result


def _restore(adata: AnnData) -> tuple[System, pd.DataFrame]:
    """System and design rows of the cells of ``adata``, checked against what is stored with it."""
    truth = adata.uns.get("truth")
    if not isinstance(truth, Mapping) or "parameters" not in truth or "cell_index" not in adata.obs:
        raise SetupError(
            "Counterfactuals need data made by simulate_perturb_seq: uns['truth']['parameters'] and obs['cell_index']."
        )
    if int(truth["version"]) != VERSION:
        raise FileFormatError(
            f"The data come from version {truth['version']} of the simulator, this is version {VERSION}; simulate anew."
        )
    system = build_system(Parameters.from_json(str(truth["parameters"])))
    stored, drawn = truth["network"], system.network.to_frame()
    same_size = len(stored) == len(drawn)
    if not same_size or not np.allclose(stored["weight"].to_numpy(), drawn["weight"].to_numpy()):
        raise FileFormatError(
            "The seed gives another network than the stored one (another version of NumPy?); simulate anew."
        )
    everyone = sample_design(system)
    cells = adata.obs["cell_index"].to_numpy().astype(int)
    if cells.size and not (0 <= cells.min() and cells.max() < len(everyone)):
        raise SetupError(f"obs['cell_index'] must lie between 0 and {len(everyone) - 1}.")
    design = everyone.iloc[cells].copy()
    design.index = adata.obs_names.copy()
    unknown = [g for g in adata.var_names if g not in set(system.network.genes)]
    if unknown:
        raise unknown_name("gene", unknown[0], system.network.genes, "the simulation")
    return system, design


def _doses(one: Intervention) -> dict[str, float]:
    """Gene -> dose of one intervention; empty for control."""
    if isinstance(one, Mapping):
        return {str(gene): float(dose) for gene, dose in one.items() if dose}
    names = one.split(SEP) if isinstance(one, str) else [str(name) for name in one]
    return {name: 1.0 for name in names if name != CONTROL}


def _parse(
    system: System, asked: Intervention | pd.Series, kind: str | None, adata: AnnData
) -> tuple[tuple[dict[int, tuple[str, float]], ...], np.ndarray, list[str]]:
    """Distinct actions, the action of each cell, and the label of each action."""
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind of intervention", kind, KINDS)
    if isinstance(asked, pd.Series):
        missing = adata.obs_names.difference(asked.index)
        if len(missing):
            raise SetupError(f"The Series of interventions lacks {len(missing)} cells, e.g. {missing[0]!r}.")
        action, distinct = pd.factorize(asked.loc[adata.obs_names].astype(str))
        wanted = [_doses(str(label)) for label in distinct]
    else:
        action, wanted = np.zeros(adata.n_obs, dtype=int), [_doses(asked)]
    place = {str(name): i for i, name in enumerate(system.network.genes)}
    for gene in (g for one in wanted for g in one):
        if gene not in place:
            raise unknown_name("gene", gene, place, "the simulation")
    actions = tuple({place[g]: (kind or system.kind_of(place[g]), d) for g, d in one.items()} for one in wanted)
    labels = [SEP.join(one) if one else CONTROL for one in wanted]
    distinct_labels = list(dict.fromkeys(labels))
    if len(distinct_labels) < len(labels):  # "control" spelt in two ways
        to = [distinct_labels.index(label) for label in labels]
        actions = tuple(actions[labels.index(label)] for label in distinct_labels)
        action = np.asarray(to)[action]
    return actions, np.asarray(action, dtype=int), distinct_labels


def _with_condition(treatment: Treatment, obs: pd.DataFrame, condition: str | None) -> Treatment:
    if condition is None:
        return treatment
    known = list(obs["condition"].cat.categories)
    if condition not in known:
        raise unknown_name("condition", condition, known, "the simulation")
    obs["condition"] = pd.Categorical([condition] * len(obs), categories=known)
    stimulated = np.full(len(obs), condition == STIMULATED)
    return Treatment(treatment.actions, treatment.action, treatment.dose, stimulated, treatment.time)


def _with_time(treatment: Treatment, obs: pd.DataFrame, time: float | None) -> Treatment:
    if time is None:
        return treatment
    if "time" not in obs:
        raise SetupError("The simulation is at steady state and has no times; give time= to simulate_perturb_seq.")
    if time < 0:
        raise SetupError(f"time must be at least 0, got {time}.")
    obs["time"] = float(time)
    times = np.full(len(obs), float(time))
    return Treatment(treatment.actions, treatment.action, treatment.dose, treatment.stimulated, times)
