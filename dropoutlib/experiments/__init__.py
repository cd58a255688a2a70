"""Data, models and the training loop of the book's experiments (extra ``experiments``)."""

from .data import Split, diabetes, digits, iris, measured
from .training import accuracy, fit, mlp

__all__ = ["Split", "accuracy", "diabetes", "digits", "fit", "iris", "measured", "mlp"]
