"""Linear classifiers of dense codes: all classes, folds and values of C together, by matrix products."""

from pipeline.classifiers.solvers.estimators import LinearSVM, Softmax, log_probabilities
from pipeline.classifiers.solvers.path import PathResult, PathSolver, fit_scalers, normalised_design

__all__ = ["LinearSVM", "PathResult", "PathSolver", "Softmax", "fit_scalers", "log_probabilities", "normalised_design"]
