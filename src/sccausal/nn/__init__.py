"""Differentiable blocks: tensors in, tensors out."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# name -> module, loaded on first use
_NAMES = {
    "Alignment": "sccausal.nn.alignment",
    "DomainDiscriminator": "sccausal.nn.adversary",
    "DomainWeights": "sccausal.nn.adversary",
    "Moments": "sccausal.nn.alignment",
    "PermutationTest": "sccausal.nn.permutation",
    "adversarial_losses": "sccausal.nn.adversary",
    "align": "sccausal.nn.alignment",
    "best_scores": "sccausal.nn.alignment",
    "centroid_discrepancy": "sccausal.nn.discrepancy",
    "condition_discrepancy": "sccausal.nn.discrepancy",
    "confusion_loss": "sccausal.nn.adversary",
    "energy_discrepancy": "sccausal.nn.discrepancy",
    "focal_loss": "sccausal.nn.adversary",
    "gradient_reversal": "sccausal.nn.adversary",
    "mmd_discrepancy": "sccausal.nn.discrepancy",
    "moments": "sccausal.nn.alignment",
    "partial_correlation": "sccausal.nn.alignment",
    "permuted_scores": "sccausal.nn.permutation",
    "tmex_distance": "sccausal.nn.alignment",
    "tmex_score": "sccausal.nn.alignment",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sccausal.nn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
