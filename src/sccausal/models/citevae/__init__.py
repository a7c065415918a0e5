"""CITE-VAE: latent dynamical causal processes of perturbed cells over time."""

from __future__ import annotations

from sccausal.models.citevae._model import CITEVAE

__all__ = ["CITEVAE"]
