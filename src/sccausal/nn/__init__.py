"""Differentiable blocks: tensors in, tensors out."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# name -> module, loaded on first use
_NAMES = {
    "Alignment": "sccausal.nn.alignment",
    "ConceptSCM": "sccausal.nn.concepts",
    "DomainDiscriminator": "sccausal.nn.adversary",
    "DomainWeights": "sccausal.nn.adversary",
    "EMA": "sccausal.nn.diffusion",
    "GaussianDenoiser": "sccausal.nn.score",
    "LaggedDynamics": "sccausal.nn.dynamics",
    "Moments": "sccausal.nn.alignment",
    "PermutationTest": "sccausal.nn.permutation",
    "adversarial_losses": "sccausal.nn.adversary",
    "align": "sccausal.nn.alignment",
    "annealed_langevin": "sccausal.nn.score",
    "best_scores": "sccausal.nn.alignment",
    "centroid_discrepancy": "sccausal.nn.discrepancy",
    "condition_discrepancy": "sccausal.nn.discrepancy",
    "confusion_loss": "sccausal.nn.adversary",
    "coupled_discrepancy": "sccausal.nn.discrepancy",
    "decode_pair": "sccausal.nn.diffusion",
    "encode_pair": "sccausal.nn.diffusion",
    "energy_discrepancy": "sccausal.nn.discrepancy",
    "fixed_points": "sccausal.nn.score",
    "focal_loss": "sccausal.nn.adversary",
    "gradient_reversal": "sccausal.nn.adversary",
    "group_discrepancy": "sccausal.nn.discrepancy",
    "karras_levels": "sccausal.nn.levels",
    "level_weights": "sccausal.nn.concepts",
    "mmd_discrepancy": "sccausal.nn.discrepancy",
    "moments": "sccausal.nn.alignment",
    "noise_levels": "sccausal.nn.levels",
    "partial_correlation": "sccausal.nn.alignment",
    "permuted_scores": "sccausal.nn.permutation",
    "preconditioning": "sccausal.nn.score",
    "skip_scale": "sccausal.nn.levels",
    "tmex_distance": "sccausal.nn.alignment",
    "tmex_score": "sccausal.nn.alignment",
    "vp_levels": "sccausal.nn.levels",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sccausal.nn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
