"""gCRL: latent variables that measure activities of gene sets, and the models it extends."""

from __future__ import annotations

from sccausal.models.gcrl._autoencoder import GCRLAE
from sccausal.models.gcrl._model import GCRLVAE, DiscrepancyVAE

__all__ = ["GCRLAE", "GCRLVAE", "DiscrepancyVAE"]
