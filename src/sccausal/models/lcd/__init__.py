"""LCD: stationary diffusions of expression under measurement noise, and CLIPR on top of them."""

from __future__ import annotations

from sccausal.models.lcd._model import LCD

__all__ = ["LCD"]
