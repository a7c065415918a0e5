"""Differentiable blocks: tensors in, tensors out."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# name -> module, loaded on first use
_NAMES = {
    "DomainDiscriminator": "sccausal.nn.adversary",
    "DomainWeights": "sccausal.nn.adversary",
    "adversarial_losses": "sccausal.nn.adversary",
    "confusion_loss": "sccausal.nn.adversary",
    "focal_loss": "sccausal.nn.adversary",
    "gradient_reversal": "sccausal.nn.adversary",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sccausal.nn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
