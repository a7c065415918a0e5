"""What the concepts are: their columns, levels and graph, read from the registry and the arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sccausal._compat import state_registry
from sccausal._errors import SetupError, unknown_name
from sccausal.data import KEYS, InterventionCodec
from sccausal.nn.concepts import level_weights, topological_order

ConceptKind = Literal["categorical", "ordered", "intervention", "continuous"]
DAG: TypeAlias = Mapping[str, Sequence[str]] | pd.DataFrame | Any
"""``{child: [parents]}``, a networkx DiGraph, or an adjacency frame (rows are sources, columns targets)."""

_MAX_KNOTS = 8


@dataclass(frozen=True, eq=False)
class Concept:
    """One concept.

    Parameters
    ----------
    name
        Column.
    kind
        What its values are.
    levels
        Names of the levels; of the knots, for a continuous concept.
    values
        Number each level stands for (ordered, continuous), rising.
    rows
        Doses of each level (levels, targets) of an intervention.
    source
        Registered tensor it is read from.
    column
        Column in that tensor.
    positions
        Level of each registered code, where levels follow their numbers and codes do not.
    """

    name: str
    kind: ConceptKind
    levels: tuple[str, ...]
    values: np.ndarray | None = None
    rows: np.ndarray | None = None
    source: str = KEYS.CONCEPTS
    column: int = 0
    positions: np.ndarray | None = None

    @property
    def n_levels(self) -> int:
        """Number of levels."""
        return len(self.levels)

    @property
    def is_number(self) -> bool:
        """Whether values between the levels mean something."""
        return self.kind in ("ordered", "continuous")

    def weights(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Share of each level in the labels of cells (n, levels); rows sum to 1."""
        if self.kind == "continuous":
            knots = torch.as_tensor(self.values, dtype=torch.float32)
            value = tensors[self.source][:, self.column].float()
            return level_weights(value, knots.to(value.device))
        if self.kind == "intervention":
            rows = torch.as_tensor(self.rows, dtype=torch.float32, device=tensors[self.source].device)
            dose = tensors[self.source].float()
            code = torch.cdist(dose, rows).argmin(1)
        else:
            code = tensors[self.source][:, self.column].long()
            if self.positions is not None:
                code = torch.as_tensor(self.positions, device=code.device)[code]
        return torch.nn.functional.one_hot(code, self.n_levels).float()

    def named(self, weights: np.ndarray) -> np.ndarray:
        """Labels, or numbers for a concept of numbers, of level weights (n, levels)."""
        if self.kind == "continuous":
            return weights @ np.asarray(self.values)
        return np.asarray(self.levels, dtype=object)[weights.argmax(1)]

    def parse(self, value: Any, codec: InterventionCodec | None) -> tuple[Tensor, str]:
        """Features of a value a user asks for, and how it is shown.

        Returns
        -------
        Level weights (levels,), or doses (targets,) for an intervention; and the label.

        Raises
        ------
        sccausal._errors.UnknownNameError
            There is no such level; close names are given.
        """
        if self.kind == "intervention":
            assert codec is not None
            row = codec.parse(value)
            return torch.as_tensor(row, dtype=torch.float32), codec.label(row, with_dose=True)
        if self.kind != "continuous" and str(value) in self.levels:
            hot = torch.zeros(self.n_levels)
            hot[self.levels.index(str(value))] = 1.0
            return hot, str(value)
        if self.is_number and isinstance(value, int | float | np.number) and np.isfinite(value):
            knots = torch.as_tensor(self.values, dtype=torch.float32)
            if not float(knots[0]) <= float(value) <= float(knots[-1]):
                raise SetupError(
                    f"{self.name}={value:g} lies outside the observed values {float(knots[0]):g} to "
                    f"{float(knots[-1]):g}; the model interpolates and does not extrapolate."
                )
            return level_weights(torch.tensor([float(value)]), knots)[0], f"{float(value):g}"
        raise unknown_name("level", str(value), self.levels, f"the concept {self.name!r}")

    def features_of(self, parsed: Tensor) -> Tensor:
        """Level weights of what :meth:`parse` gave; of an intervention, the level with these doses or none."""
        if self.kind != "intervention":
            return parsed
        rows = torch.as_tensor(self.rows, dtype=torch.float32)
        return (rows == parsed).all(1).float()


def read_concepts(
    registry: dict[str, Any],
    setup_args: Mapping[str, Any],
    ordered: Mapping[str, Mapping[str, float]],
    levels: Mapping[str, Any],
) -> list[Concept]:
    """Concepts of a registered data set: the columns of ``concept_keys``, the intervention, the time."""
    found: list[Concept] = []
    mappings = state_registry(registry, KEYS.CONCEPTS).get("mappings", {})
    for k, (name, known) in enumerate(mappings.items()):
        names = tuple(str(v) for v in known)
        if name in ordered:
            numbers = ordered[name]
            by_value = sorted(names, key=lambda n: numbers[n])
            values = np.array([float(numbers[n]) for n in by_value])
            positions = np.array([by_value.index(n) for n in names])
            found.append(Concept(name, "ordered", tuple(by_value), values, column=k, positions=positions))
        else:
            found.append(Concept(name, "categorical", names, column=k))
    state = state_registry(registry, KEYS.INTERVENTION)
    if state:
        codec = InterventionCodec.from_dict(state)
        name = str(state["original_key"])
        labels = [str(v) for v in levels[name]]
        found.append(
            Concept(name, "intervention", tuple(labels), rows=codec.parse_many(labels), source=KEYS.INTERVENTION)
        )
    key = setup_args.get("time_key")
    if key:
        knots = np.asarray(levels[key], dtype=float)
        found.append(Concept(key, "continuous", tuple(f"{v:g}" for v in knots), knots, source=KEYS.TIME))
    names_ = [c.name for c in found]
    repeated = sorted({n for n in names_ if names_.count(n) > 1})
    if repeated:
        raise SetupError(f"{repeated[0]!r} is named twice; leave it out of concept_keys.")
    if not found:
        raise SetupError("CausCell needs concepts: name columns of adata.obs in `concept_keys`.")
    return found


def seen_levels(manager: Any, registry: dict[str, Any], time_key: str | None) -> dict[str, list[Any]]:
    """Interventions that occur, and knots of the time: at its values if they are few, else at quantiles."""
    out: dict[str, list[Any]] = {}
    state = state_registry(registry, KEYS.INTERVENTION)
    if state:
        codec = InterventionCodec.from_dict(state)
        doses = manager.get_from_registry(KEYS.INTERVENTION)
        rows = np.unique(np.asarray(doses.todense() if hasattr(doses, "todense") else doses), axis=0)
        out[str(state["original_key"])] = [codec.label(row, with_dose=True) for row in rows]
    if time_key:
        values = np.unique(np.asarray(manager.get_from_registry(KEYS.TIME), dtype=float))
        if len(values) < 2:
            raise SetupError(f"adata.obs[{time_key!r}] (time_key) has one value; a concept needs two.")
        if len(values) > _MAX_KNOTS:
            column = np.asarray(manager.get_from_registry(KEYS.TIME), dtype=float).ravel()
            values = np.unique(np.quantile(column, np.linspace(0, 1, _MAX_KNOTS)))
        out[time_key] = [float(v) for v in values]
    return out


def read_ordered(
    ordered: Sequence[str] | Mapping[str, Mapping[str, float]] | None, registry: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Numbers behind the levels of ordered concepts.

    Raises
    ------
    sccausal._errors.UnknownNameError
        A concept is not among ``concept_keys``.
    sccausal._errors.SetupError
        A level has no number, or two share one.
    """
    mappings = state_registry(registry, KEYS.CONCEPTS).get("mappings", {})
    asked = ordered if isinstance(ordered, Mapping) else {str(n): None for n in ordered or ()}
    out: dict[str, dict[str, float]] = {}
    for name, given in asked.items():
        if name not in mappings:
            raise unknown_name("ordered concept", name, mappings, "concept_keys")
        names = [str(v) for v in mappings[name]]
        numbers: dict[str, float] = {}
        for level in names:
            try:
                numbers[level] = float(given[level] if given is not None else level)
            except (KeyError, ValueError):
                raise SetupError(
                    f"Level {level!r} of {name!r} stands for no number; give all of them: "
                    f"ordered={{{name!r}: {{{', '.join(f'{n!r}: ...' for n in names[:3])}}}}}."
                ) from None
        if len(set(numbers.values())) < len(numbers) or not np.isfinite(list(numbers.values())).all():
            raise SetupError(f"The levels of {name!r} must stand for different finite numbers; got {numbers}.")
        out[name] = numbers
    return out


def read_dag(dag: DAG | None, names: Sequence[str]) -> dict[str, list[str]] | None:
    """``{child: [parents]}`` of a graph in any of its forms.

    Raises
    ------
    sccausal._errors.UnknownNameError
        A node is no concept.
    sccausal._errors.SetupError
        The graph has a cycle (which is named), or its form is not known.
    """
    if dag is None:
        return None
    edges = _edges(dag)
    for node in (n for edge in edges for n in edge):
        if node not in names:
            raise unknown_name("concept", node, names, "the DAG")
    out: dict[str, list[str]] = {}
    for source, target in edges:
        if source not in out.setdefault(target, []):
            out[target].append(source)
    try:
        topological_order([[list(names).index(p) for p in out.get(n, ())] for n in names])
    except SetupError:
        import networkx as nx

        cycle = nx.find_cycle(nx.DiGraph(edges))
        walk = " -> ".join([*(str(a) for a, _ in cycle), str(cycle[0][0])])
        raise SetupError(f"The DAG has a cycle: {walk}. Take one of these edges out.") from None
    return {n: out[n] for n in names if out.get(n)}


def _edges(dag: Any) -> list[tuple[str, str]]:
    if isinstance(dag, pd.DataFrame):
        if {"source", "target"} <= set(dag.columns):
            return [(str(s), str(t)) for s, t in zip(dag["source"], dag["target"], strict=True)]
        values = dag.to_numpy(dtype=float)
        if dag.shape[0] != dag.shape[1] or set(map(str, dag.index)) != set(map(str, dag.columns)):
            raise SetupError("An adjacency frame needs the same concepts as rows (sources) and columns (targets).")
        rows, columns = np.nonzero(values)
        above, below = list(map(str, dag.index)), list(map(str, dag.columns))
        return [(above[int(i)], below[int(j)]) for i, j in zip(rows, columns, strict=True)]
    if isinstance(dag, Mapping):
        out = []
        for child, parents in dag.items():
            above = [parents] if isinstance(parents, str) else list(parents)
            out += [(str(p), str(child)) for p in above]
        return out
    if hasattr(dag, "edges") and callable(getattr(dag, "is_directed", None)):
        if not dag.is_directed():
            raise SetupError("The DAG must be directed; got an undirected networkx graph.")
        return [(str(a), str(b)) for a, b in dag.edges()]
    raise SetupError(
        f"dag must be {{child: [parents]}}, a networkx DiGraph or an adjacency frame; got {type(dag).__name__}."
    )
