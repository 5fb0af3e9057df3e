"""Linear classifiers of dense codes, all classes, folds and values of C at once by matrix products."""

from pipeline.classifiers.solvers.estimators import LinearSVM, Softmax
from pipeline.classifiers.solvers.path import Path, fit_scalers, held_out_scores, normalised_design, search_path

__all__ = ["LinearSVM", "Path", "Softmax", "fit_scalers", "held_out_scores", "normalised_design", "search_path"]
