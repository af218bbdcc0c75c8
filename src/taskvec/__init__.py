"""taskvec: edit trained models by arithmetic on their weights, and say how well the edit worked."""

__version__ = "0.1.0"
