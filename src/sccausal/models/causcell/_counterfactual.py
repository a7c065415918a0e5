"""Cells as they would have been: interventions on concepts, simulated trials, predicted perturbations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sccausal._compat import setup_args
from sccausal._docs import docs
from sccausal._errors import NumericalError, SetupError, unknown_name
from sccausal.data import prediction_anndata
from sccausal.models._cells import light_copy, registered, take_modality
from sccausal.models.causcell._module import SIGMA_HIGH, SIGMA_LOW
from sccausal.models.causcell._steps import Request, Settings, change_cells, draw_cells, normal

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from sccausal.models._base import CausalModel
    from sccausal.nn.diffusion import Solver

Mode = Literal["do", "hold", "shift"]
MODES: tuple[Mode, ...] = ("do", "hold", "shift")
SOURCES = ("own", "prior", "donor")


class CounterfactualMixin:
    """Counterfactuals of :class:`~sccausal.models.CausCell`."""

    if TYPE_CHECKING:  # the attributes are those of the class this is a part of

        def __getattr__(self, name: str) -> Any: ...

    @torch.inference_mode()
    @docs.dedent
    def counterfactual(
        self,
        adata: AnnData | MuData | None = None,
        do: Mapping[str, Any] | None = None,
        mode: Mode = "do",
        *,
        n_samples: int = 1,
        source: Literal["own", "prior", "donor"] = "own",
        keep_own: bool = True,
        abduction: Literal["inverted", "shared"] = "inverted",
        n_steps: int = 20,
        solver: Solver = "dpm++2m",
        seed: int = 0,
        batch_size: int | None = None,
    ) -> AnnData:
        """The same cells, had concepts been set to other values.

        A prediction is the observed cell plus the difference of two passes of the diffusion model that share noise and
        steps: one under the cell's own embeddings, one under those after the intervention.

        Parameters
        ----------
        %(query_adata)s
        do
            Concept -> value; several at once. Ordered and continuous concepts take numbers between the observed ones.
        mode
            ``"do"``: incoming edges are cut, descendants follow with their own exogenous parts. ``"hold"``: all other
            embeddings stay, which leaves the controlled direct effect. ``"shift"``: only the exogenous part is
            exchanged, so that the parents keep acting on the concept.
        %(n_samples)s They are kept apart, not averaged.
        source
            Where the new embedding comes from. ``"own"``: the mean of the new value in the place of that of the own
            one, with the cell's own deviation from it; ``"prior"``: a draw around the mean of the new value;
            ``"donor"``: a training cell that has it, with the same parents' labels where there is one. Mode
            ``"shift"`` takes the exogenous part of any cell that has it.
        keep_own
            Cells that have the value already keep their embedding, and so are returned as they are.
        abduction
            ``"inverted"``: both passes start from the noise that gives back the cell itself, found by exact inversion
            (:func:`sccausal.nn.encode_pair`). ``"shared"``: from the same random noise.
        n_steps
            Noise levels.
        solver
            Solver of ``abduction="shared"`` (:func:`sccausal.nn.diffusion.sample`).
        %(seed)s
        %(batch_size)s

        Returns
        -------
        AnnData in the prediction schema, one row per cell and draw: ``obs["source_cell"]``, ``obs["sample"]``,
        ``obs["intervention"]`` (``"age=40"``) and the concepts of the source cells; ``uns["sccausal"]`` names
        intervention and mode.

        Raises
        ------
        sccausal._errors.UnknownNameError
            A concept or value is not known.
        sccausal._errors.SetupError
            A number lies outside the observed values, or donors are needed and the model holds no cells.
        """
        if not do:
            raise SetupError("There is nothing to set; pass e.g. do={'condition': 'stimulated'}.")
        if n_samples < 1:
            raise SetupError(f"n_samples must be at least 1, got {n_samples}.")
        settings = Settings(n_steps, solver, abduction, SIGMA_LOW, SIGMA_HIGH)
        request = self._request(do, mode, source, keep_own)
        self._check_if_trained(warn=False)
        self.module.eval()
        with registered(cast("CausalModel", self), self._filled(adata), as_control=True) as cells:
            values = self._changed_cells(cells, request, n_samples, seed, settings, batch_size)
            concepts = self._observed(cells)
        label = ", ".join(f"{name}={shown}" for name, (_, shown) in request.values.items())
        n = len(concepts)
        return prediction_anndata(
            values,
            concepts.iloc[np.tile(np.arange(n), n_samples)],
            pd.DataFrame(index=pd.Index([str(g) for g in self.get_var_names()])),
            interventions=label,
            sample=np.repeat(np.arange(n_samples), n).tolist(),
            units=self.prediction_units,
            method="CausCell",
            extra={"do": {k: shown for k, (_, shown) in request.values.items()}, "mode": mode},
        )

    @torch.inference_mode()
    def trial(
        self,
        do: Mapping[str, Sequence[Any]],
        n_cells: int = 1000,
        *,
        n_steps: int = 20,
        solver: Solver = "dpm++2m",
        seed: int = 0,
        batch_size: int | None = None,
    ) -> AnnData:
        """Simulated randomised trial: cells whose other concepts are drawn anew, alike in all arms.

        Every concept's exogenous part is drawn from a training cell of its own, so that concepts are joined by the
        DAG only and not by how the data were collected.

        Parameters
        ----------
        do
            Concept -> values, one arm each; with several concepts all combinations are arms.
        n_cells
            Cells per arm; the same cells, with the same noise, in each.
        n_steps, solver
            As for :meth:`counterfactual`.
        seed
            Seed of the draws.
        batch_size
            Cells that are computed together.

        Returns
        -------
        AnnData in the prediction schema, ``obs`` with one column per concept of ``do``; ``source_cell`` numbers the
        cells of an arm.

        Raises
        ------
        sccausal._errors.SetupError
            The model holds no cells to draw from.
        """
        from itertools import product

        if self.adata is None:
            raise SetupError("A trial draws from the training cells; load the model with `adata`.")
        if not do or n_cells < 1:
            raise SetupError("A trial needs arms, e.g. do={'age': [20, 40]}, and n_cells >= 1.")
        names = list(do)
        arms = list(product(*[[v] if isinstance(v, str | int | float) else list(v) for v in do.values()]))
        eps = self._exogenous(None, n_samples=1, seed=seed, batch_size=batch_size)[0]
        rows = [
            torch.as_tensor(np.random.default_rng([seed, 5, j]).integers(0, len(eps), n_cells))
            for j in range(eps.shape[1])
        ]
        mixed = torch.stack([eps[r.to(eps.device), j] for j, r in enumerate(rows)], dim=1)
        settings = Settings(n_steps, solver, "shared", SIGMA_LOW, SIGMA_HIGH)
        blocks, frames = [], []
        for arm in arms:
            request = self._request(dict(zip(names, arm, strict=True)), "do", "prior", False)
            set_to = {j: self._prior_draw(j, p, n_cells, seed, 0) for j, p in request.features.items()}
            blocks.append(draw_cells(self.module, self.module.embed(mixed, set_to), settings, seed, batch_size))
            shown = {n: s for n, (_, s) in request.values.items()}
            frames.append(pd.DataFrame(shown, index=[f"cell{i}" for i in range(n_cells)]))
        obs = pd.concat(frames)
        return prediction_anndata(
            self._checked(np.concatenate(blocks)),
            obs.astype("category"),
            pd.DataFrame(index=pd.Index([str(g) for g in self.get_var_names()])),
            interventions=[", ".join(f"{n}={v}" for n, v in row.items()) for row in obs.to_dict("records")],
            units=self.prediction_units,
            method="CausCell",
            extra={"mode": "trial"},
        )

    # ------------------------------------------------------------------ model.perturbation

    def _predict_cells(
        self,
        adata: AnnData,
        row: np.ndarray,
        *,
        condition: str | None,
        time: float | None,
        n_samples: int,
        seed: int,
        batch_size: int | None,
    ) -> np.ndarray:
        j = next(k for k, c in enumerate(self.module.concepts) if c.kind == "intervention")
        concept = self.module.concepts[j]
        features = torch.as_tensor(row, dtype=torch.float32)
        request = Request("do", "own", True, {j: features}, {concept.name: (features, "")})
        if time is not None:
            k = next(k for k, c in enumerate(self.module.concepts) if c.kind == "continuous")
            parsed, shown = self.module.concepts[k].parse(time, None)
            request.features[k] = parsed
            request.values[self.module.concepts[k].name] = (parsed, shown)
        settings = Settings(20, "dpm++2m", "inverted", SIGMA_LOW, SIGMA_HIGH)
        return self._changed_cells(adata, request, n_samples, seed, settings, batch_size)

    @property
    def prediction_units(self) -> str:
        """``"counts"`` with ``gene_likelihood="nb"``, otherwise the unit of the data (``"as_given"``)."""
        return str(self.module.space.units)

    # ------------------------------------------------------------------ parts

    def _request(self, do: Mapping[str, Any], mode: str, source: str, keep_own: bool) -> Request:
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES)
        if source not in SOURCES:
            raise unknown_name("source", source, SOURCES)
        values, features = {}, {}
        for name, value in do.items():
            j, concept = self._concept(name)
            codec = self.codec if concept.kind == "intervention" else None
            values[name] = concept.parse(value, codec)
            features[j] = values[name][0]
        return Request(mode, "donor" if mode == "shift" else source, keep_own, features, values)

    def _changed_cells(
        self, cells: AnnData, request: Request, n_samples: int, seed: int, settings: Settings, batch_size: int | None
    ) -> np.ndarray:
        eps = self._exogenous_of(cells, n_samples, seed, batch_size)
        labels = [torch.as_tensor(w) for w in self._weights_of(cells)]
        x = self._values(cells)
        blocks = []
        for k, own in enumerate(eps):
            before = self.module.embed(own)
            after = self._intervened(own, before, labels, request, seed, k)
            blocks.append(change_cells(self.module, x, before, after, settings, seed, k, batch_size))
        return self._checked(np.concatenate(blocks))

    def _intervened(
        self, eps: Tensor, before: Tensor, labels: list[Tensor], request: Request, seed: int, draw: int
    ) -> Tensor:
        """Tokens after the intervention (n, concepts + 1, d)."""
        own, new = (eps, eps.clone()) if request.mode == "shift" else (before, before.clone())
        for j, features in request.features.items():
            concept = self.module.concepts[j]
            if request.source == "donor":
                value = self._donated(j, features, labels, request.mode, seed, draw)
            elif request.source == "own":
                mean = self.module.prior_mean(j, features.to(eps).unsqueeze(0))
                had = self.module.prior_mean(j, self.module.prior_features(j, labels[j].to(eps)))
                value = before[:, j] + (mean - had)
            else:
                value = self._prior_draw(j, features, len(eps), seed, draw)
            if request.keep_own:
                same = concept.features_of(features).to(eps.device)
                kept = (labels[j].to(eps.device) - same).abs().sum(1) < 1e-6
                value = torch.where(kept.unsqueeze(1), own[:, j], value)
            new[:, j] = value
        if request.mode == "shift":
            return self.module.embed(new)
        if request.mode == "hold":
            return new
        return self.module.embed(eps, {j: new[:, j] for j in request.features})

    def _prior_draw(self, j: int, features: Tensor, n: int, seed: int, draw: int) -> Tensor:
        mean = self.module.prior_mean(j, features.to(self.device).unsqueeze(0))
        return mean + normal((n, mean.shape[1]), mean, seed, 3, draw, j)

    def _donated(self, j: int, features: Tensor, labels: list[Tensor], mode: str, seed: int, draw: int) -> Tensor:
        """Embedding (exogenous part in mode ``"shift"``) of a training cell with the wanted value."""
        concept = self.module.concepts[j]
        if self.adata is None:
            raise SetupError("Donors are training cells; load the model with `adata`, or use source='prior'.")
        wanted = concept.features_of(features)
        pool = [torch.as_tensor(w) for w in self._label_weights()]
        match = (pool[j] - wanted).abs().sum(1) < 1e-6
        train = torch.zeros(len(match), dtype=torch.bool)
        train[torch.as_tensor(np.asarray(self.train_indices))] = True
        if not bool((match & train).any()):
            raise SetupError(f"No training cell has this value of {concept.name!r}; use source='prior'.")
        eps = self._exogenous(None, n_samples=1, seed=seed + 7919 * (draw + 1))[0]
        given = eps if mode == "shift" else self.module.embed(eps)
        rng = np.random.default_rng([seed, 4, draw, j])
        # the authors' exchange of exogenous parts takes no notice of parents
        above = () if mode == "shift" else self.module.scm.parents[j]
        key, theirs = _joint(labels, above), _joint(pool, above)
        everyone = np.flatnonzero((match & train).numpy())
        rows = rng.choice(everyone, len(key))
        for group in np.unique(key):
            here = np.flatnonzero(key == group)
            matched = everyone[theirs[everyone] == group]
            if len(matched):
                rows[here] = rng.choice(matched, len(here))
        return given[torch.as_tensor(rows), j]

    def _weights_of(self, cells: AnnData) -> list[np.ndarray]:
        parts: list[list[np.ndarray]] = [[] for _ in self.module.concepts]
        for tensors in self._make_data_loader(cells, batch_size=4096):
            for part, concept in zip(parts, self.module.concepts, strict=True):
                part.append(concept.weights(tensors).cpu().numpy())
        return [np.concatenate(p) for p in parts]

    def _values(self, cells: AnnData) -> np.ndarray:
        layer = setup_args(self.registry_).get("layer")
        matrix = cells.X if layer is None else cells.layers[layer]
        return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=np.float32)

    def _observed(self, cells: AnnData) -> pd.DataFrame:
        named = {c.name: c.named(w) for c, w in zip(self.module.concepts, self._weights_of(cells), strict=True)}
        frame = pd.DataFrame(named, index=cells.obs_names)
        for c in self.module.concepts:
            if c.kind != "continuous":
                frame[c.name] = pd.Categorical(frame[c.name], categories=list(c.levels))
        return frame

    def _filled(self, adata: AnnData | MuData | None) -> Any:
        """New cells may lack columns of concepts: what the model reads from their expression stands in."""
        if adata is None:
            return None
        cells = take_modality(adata)
        lost = [c for c in self.module.concepts if c.kind != "intervention" and c.name not in cells.obs]
        if not lost:
            return cells
        copy = light_copy(cast("CausalModel", self), cells)
        for c in lost:
            copy.obs[c.name] = c.levels[0] if c.values is None or c.kind == "ordered" else float(c.values[0])
        guess = self.predict_concepts(copy)
        for c in lost:
            copy.obs[c.name] = guess[c.name]
        return copy

    def _checked(self, values: np.ndarray) -> np.ndarray:
        if not np.isfinite(values).all():
            raise NumericalError("CausCell predicts values that are not finite; was training stable?")
        return np.maximum(values, 0) if getattr(self, "nonnegative_", False) else values


def _joint(labels: Sequence[Tensor], which: Sequence[int]) -> np.ndarray:
    """One code per combination of levels."""
    code = np.zeros(len(labels[0]), dtype=int)
    for i in which:
        code = code * labels[i].shape[1] + labels[i].argmax(1).numpy()
    return code
