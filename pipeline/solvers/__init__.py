"""Linear classifiers of dense codes, all classes, folds and values of C at once by matrix products."""

from pipeline.solvers.estimators import LinearSVM, Softmax
from pipeline.solvers.path import Path, held_out, normalised, scalers, search

__all__ = ["LinearSVM", "Path", "Softmax", "held_out", "normalised", "scalers", "search"]
