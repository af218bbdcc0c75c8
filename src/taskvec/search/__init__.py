"""Coefficients: grids, and sweeps along a vector in memory. Validation data only."""

from .sweep import along, curves, grid

__all__ = ["along", "curves", "grid"]
