"""Coefficients: grids, and sweeps along a vector in memory. Validation data only."""

from .sweep import affine_logits, along, curves, grid

__all__ = ["affine_logits", "along", "curves", "grid"]
