"""Permutation test of an alignment, beside principal components and a random projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from sccausal.nn.alignment import moments
from sccausal.nn.permutation import PermutationTest, permutation_pvalue, permuted_scores


@dataclass(frozen=True)
class AlignmentTest:
    """Permutation tests of several latent spaces on the same partitions.

    Attributes
    ----------
    tests
        Name of the latent space (``"autoencoder"``, ``"PCA"``, ``"random projection"``) -> its test.
    """

    tests: dict[str, PermutationTest]

    def to_frame(self) -> pd.DataFrame:
        """One row per latent space: observed score, mean, largest and standard deviation of the null, p-value, z."""
        rows = {
            name: {
                "tmex": t.observed,
                "null_mean": float(t.null.mean()),
                "null_sd": float(t.null.std(ddof=1)),
                "null_max": float(t.null.max()),
                "pvalue": t.pvalue,
                "z": t.z,
                "t_pvalue": t.t_pvalue,
                "n_permutations": len(t.null),
            }
            for name, t in self.tests.items()
        }
        return pd.DataFrame(rows).T.rename_axis("latents").astype({"n_permutations": int})

    def __getitem__(self, name: str) -> PermutationTest:
        return self.tests[name]

    def __repr__(self) -> str:
        return repr(self.to_frame())


def permutation_test(model: Any, n_permutations: int, seed: int) -> AlignmentTest:
    """Tests of the latents of a :class:`~sccausal.models.GCRLAE` on its training cells."""
    out = model._training_outputs()
    features, z = out["features"].numpy().astype(np.float64), out["y_mean"].detach().numpy().astype(np.float64)
    sets, genes = model._prior().sets, model._genes()
    position = {g: i for i, g in enumerate(genes)}
    sd = features.std(0)
    members = [[position[g] for g in own if g in position and sd[position[g]] > 1e-6] for own in sets.values()]
    # a gene in two sets keeps both places: sizes and overlaps stay what they are
    pool = np.array([i for own in members for i in own])
    sizes = [len(own) for own in members]
    rng = np.random.default_rng(seed)
    order = np.vstack([np.arange(len(pool)), *[rng.permutation(len(pool)) for _ in range(n_permutations)]])
    spaces = {"autoencoder": z, **_simple_spaces(features, model, z.shape[1], rng)}
    extra = model.condition_on_global_ and model._prior().has_global
    tests = {}
    for name, latent in spaces.items():
        m = moments(features[:, pool], latent)
        given = None
        if extra:
            t = out["activity"].numpy().astype(np.float64)[:, :1]
            given = (moments(features[:, pool], t).tz[:, 0], moments(t, latent).tz[0], torch.ones((), dtype=m.tt.dtype))
        scores = permuted_scores(m.tt, m.tz, m.zz, sizes, torch.as_tensor(order), m.n, extra=given).mean(1).numpy()
        tests[name] = permutation_pvalue(scores[0], scores[1:])
    return AlignmentTest(tests)


def _simple_spaces(features: np.ndarray, model: Any, d: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    seen = features[:, model.module.encoder_genes.cpu().numpy()]
    seen = (seen - seen.mean(0)) / np.maximum(seen.std(0), 1e-6)
    _, vector = np.linalg.eigh(seen.T @ seen / len(seen))
    return {"PCA": seen @ vector[:, ::-1][:, :d], "random projection": seen @ rng.normal(size=(seen.shape[1], d))}
