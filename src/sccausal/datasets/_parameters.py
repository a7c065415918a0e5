"""Parameters of the Perturb-seq simulator, their checks and the frozen presets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sccausal._errors import SetupError, unknown_name

KINDS = ("knockout", "knockdown", "activation")
# raised whenever the same parameters and seed give other cells
VERSION = 1


@dataclass(frozen=True)
class Parameters:
    """Everything that, with the seed, determines a simulated data set; see :func:`simulate_perturb_seq`."""

    n_cells: int = 2000
    n_genes: int = 500
    n_targets: int = 20
    n_doubles: int = 0
    n_types: int = 1
    n_batches: int = 1
    n_regulators: int | None = None
    interventions: tuple[str, ...] = ("knockout",)
    doses: tuple[float, ...] = (1.0,)
    interaction: float = 0.0
    condition: bool = False
    condition_strength: float = 1.0
    type_response: float = 0.4
    confounded: float = 0.0
    batch_strength: float = 0.3
    time: tuple[float, ...] | None = None
    control_fraction: float = 0.2
    library_size: float = 5000.0
    dispersion: float = 0.2
    dropout: float = 0.0
    strength: float = 3.0
    mean_parents: float = 2.5
    activating: float = 0.7
    n_feedback: int = 0
    noise: float = 0.4
    seed: int = 0
    network_seed: int | None = None

    @property
    def regulators(self) -> int:
        """Number of regulators."""
        return self.n_regulators if self.n_regulators is not None else max(2, self.n_genes // 10)

    @property
    def system_seed(self) -> int:
        """Seed of network, kinetics and effects, apart from the cells."""
        return self.seed if self.network_seed is None else self.network_seed

    def to_json(self) -> str:
        """Text that :meth:`from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Parameters:
        """Read what :meth:`to_json` wrote."""
        return resolve(None, **json.loads(text))


# Version 1, frozen before any model was scored on them: chosen against simple rules only (additive, mean shift,
# technical duplicate), whose scores are in docs/benchmarks.md.
PRESETS: dict[str, dict[str, Any]] = {
    "mild": {
        "n_cells": 10_000,
        "n_genes": 500,
        "n_targets": 20,
        "n_doubles": 20,
        "interventions": "activation",
        "interaction": 0.54,
        "strength": 2.5,
        "noise": 0.3,
        "dispersion": 0.15,
        "library_size": 1800.0,
    },
    "strong": {
        "n_cells": 7_500,
        "n_genes": 1000,
        "n_targets": 30,
        "n_doubles": 30,
        "n_regulators": 150,
        "interventions": "activation",
        "interaction": 0.9,
        "strength": 1.6,
        "noise": 0.3,
        "dispersion": 0.12,
        "library_size": 1750.0,
    },
    "condition": {
        "n_cells": 3_600,
        "n_genes": 1000,
        "n_targets": 0,
        "n_types": 6,
        "condition": True,
        "type_response": 0.48,
        "noise": 0.3,
        "dispersion": 0.15,
        "library_size": 1800.0,
    },
}

_AT_LEAST = {
    "n_cells": 2,
    "n_genes": 4,
    "n_targets": 0,
    "n_doubles": 0,
    "n_types": 1,
    "n_batches": 1,
    "n_feedback": 0,
    "interaction": 0.0,
    "condition_strength": 0.0,
    "type_response": 0.0,
    "batch_strength": 0.0,
    "noise": 0.0,
    "mean_parents": 1.0,
    "seed": 0,
    "network_seed": 0,
}
_POSITIVE = ("library_size", "dispersion", "strength")
_FRACTIONS = ("confounded", "control_fraction", "dropout", "activating")


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (value,)
    return tuple(value)


def resolve(preset: str | None, **given: Any) -> Parameters:
    """Defaults, overridden by the preset, overridden by what was given (None counts as not given).

    Raises
    ------
    UnknownNameError
        For an unknown preset or kind of intervention.
    SetupError
        For a value out of range; the message names the argument.
    """
    chosen: dict[str, Any] = {}
    if preset is not None:
        if preset not in PRESETS:
            raise unknown_name("preset", preset, PRESETS, "simulate_perturb_seq")
        chosen.update(PRESETS[preset])
    known = {f.name for f in fields(Parameters)}
    for name, value in given.items():
        if name not in known:
            raise unknown_name("argument", name, sorted(known), "simulate_perturb_seq")
        if value is not None:
            chosen[name] = value
    for name, convert in (("interventions", str), ("doses", float), ("time", float)):
        if chosen.get(name) is not None:
            chosen[name] = tuple(convert(v) for v in _as_tuple(chosen[name]))
    parameters = Parameters(**chosen)
    _check(parameters)
    return parameters


def _check(p: Parameters) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(p, name)
        if value is not None and not value >= least:
            raise SetupError(f"{name} must be at least {least}, got {value}.")
    for name in _POSITIVE:
        if not getattr(p, name) > 0:
            raise SetupError(f"{name} must be greater than 0, got {getattr(p, name)}.")
    for name in _FRACTIONS:
        if not 0 <= getattr(p, name) <= 1:
            raise SetupError(f"{name} must lie between 0 and 1, got {getattr(p, name)}.")
    for kind in p.interventions:
        if kind not in KINDS:
            raise unknown_name("kind of intervention", kind, KINDS, "interventions")
    if not p.interventions:
        raise SetupError(f"interventions must name at least one of {', '.join(KINDS)}.")
    if not p.doses or not all(0 < d for d in p.doses):
        raise SetupError(f"doses must be greater than 0, got {p.doses}.")
    if "knockout" in p.interventions and max(p.doses) > 1:
        raise SetupError(f"The dose of a knock-out is the fraction knocked out, at most 1; got {max(p.doses)}.")
    if p.time is not None and (not p.time or min(p.time) < 0):
        raise SetupError(f"time must hold times of observation of at least 0, got {p.time}.")
    if not 2 <= p.regulators <= p.n_genes:
        raise SetupError(f"n_regulators must lie between 2 and n_genes={p.n_genes}, got {p.regulators}.")
    _check_groups(p)


def _check_groups(p: Parameters) -> None:
    if p.n_targets > p.n_genes:
        raise SetupError(f"n_targets={p.n_targets} is more than n_genes={p.n_genes}.")
    possible = p.n_targets * (p.n_targets - 1) // 2
    if p.n_doubles > possible:
        raise SetupError(f"n_doubles={p.n_doubles}, but {p.n_targets} targets form only {possible} pairs.")
    groups = p.n_targets + p.n_doubles
    perturbed = p.n_cells - round(p.control_fraction * p.n_cells) if groups else 0
    if groups and perturbed < groups:
        raise SetupError(
            f"{perturbed} perturbed cells cannot cover {groups} interventions; raise n_cells or lower control_fraction."
        )
