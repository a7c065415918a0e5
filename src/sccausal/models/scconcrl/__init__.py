"""scConCRL: a structural equation model over genes and domains inside a variational autoencoder."""

from __future__ import annotations

from sccausal.models.scconcrl._model import ScConCRL

__all__ = ["ScConCRL"]
