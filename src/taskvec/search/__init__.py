"""Coefficients: grids, and sweeps along a vector in memory. Validation data only."""

from .sweep import affine_features, along, answers, anywhere, curves, grid

__all__ = ["affine_features", "along", "answers", "anywhere", "curves", "grid"]
