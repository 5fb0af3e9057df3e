"""The solvers reach scikit-learn's objectives, the path equals fits fold by fold, and bad input gets a sentence."""

import warnings

import h5py
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline.classifiers import solvers
from pipeline.classifiers.solvers import path as path_module
from pipeline.classifiers.solvers.descent import remaining_decrease

SHAPES = {"tall": (600, 80, 10), "square": (250, 200, 3), "wide": (90, 400, 10), "two classes": (300, 60, 2)}
MODELS = {"svm": solvers.LinearSVM, "softmax": solvers.Softmax}


def codes(n: int, d: int, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make codes (n, d) float32 as a ReLU leaves them, rows of length 1, and labels; each class is there."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    latent = rng.normal(size=(n_classes, 16))[y] + 1.2 * rng.normal(size=(n, 16))
    X = np.maximum(latent @ rng.normal(size=(16, d)) / 4 + rng.normal(size=(n, d)) - 0.5, 0)
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32), y


def hinges(model, X, y, weight):
    """Return the objective of each class of a linear SVM: (n_columns,) float64."""
    scores = (X.astype(float) @ model.coef_.T.astype(float)) + model.intercept_
    signs = np.where(y[:, None] == (model.classes_ if scores.shape[1] > 1 else model.classes_[1:]), 1, -1)
    losses = weight[:, None] * np.maximum(0, 1 - signs * scores) ** 2
    return (model.coef_.astype(float) ** 2).sum(1) / 2 + model.intercept_**2 / 2 + model.C * losses.sum(0)


def entropies(model, X, y, weight):
    """Return the objective of logistic regression."""
    logs = model.predict_log_proba(X.astype(float))[np.arange(len(y)), np.searchsorted(model.classes_, y)]
    return (model.coef_.astype(float) ** 2).sum() / 2 - model.C * (weight * logs).sum()


@parametrize_with_checks([solvers.LinearSVM(), solvers.Softmax()])
def test_scikit_learn_checks_pass(estimator, check):
    check(estimator)


@pytest.mark.parametrize("C", [1e-3, 1, 30, 1e3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_svm_reaches_the_objective_of_linearsvc(shape, C, weighted):
    X, y = codes(*SHAPES[shape])
    weight = np.random.default_rng(1).integers(0, 4, len(y)).astype(float) if weighted else np.ones(len(y))
    ours = solvers.LinearSVM(C=C).fit(X, y, weight)
    theirs = LinearSVC(C=C, tol=1e-7, max_iter=200_000).fit(X, y, weight)
    np.testing.assert_array_less(hinges(ours, X, y, weight), hinges(theirs, X, y, weight) * (1 + 1e-4))


@pytest.mark.parametrize("C", [1e-2, 1, 100])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_reaches_the_objective_of_logistic_regression(shape, C, weighted):
    X, y = codes(*SHAPES[shape])
    weight = np.random.default_rng(1).integers(0, 4, len(y)).astype(float) if weighted else np.ones(len(y))
    ours = solvers.Softmax(C=C).fit(X, y, weight)
    theirs = LogisticRegression(C=C, tol=1e-6, max_iter=5000).fit(X.astype(float), y, weight)
    assert entropies(ours, X, y, weight) < entropies(theirs, X, y, weight) * (1 + 1e-4)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=0.03)


@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 1: 0.5}])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize(("ours", "theirs"), [(solvers.LinearSVM, LinearSVC), (solvers.Softmax, LogisticRegression)])
def test_class_weights_mean_what_they_mean_in_scikit_learn(ours, theirs, n_classes, class_weight):
    X, y = codes(300, 40, n_classes)
    X, y = X[y < 3 + np.arange(300) % 2], y[y < 3 + np.arange(300) % 2]
    ours = ours(C=10, tol=1e-8, class_weight=class_weight).fit(X.astype(float), y)
    theirs = theirs(C=10, tol=1e-8, class_weight=class_weight, max_iter=50_000).fit(X.astype(float), y)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=0.01)


@pytest.mark.parametrize("model", [solvers.LinearSVM, solvers.Softmax])
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_without_an_intercept_there_is_none(model, shape):
    X, y = codes(*SHAPES[shape])
    fitted = model(fit_intercept=False).fit(X, y)
    np.testing.assert_array_equal(fitted.intercept_, 0)
    assert fitted.coef_.dtype == np.float32 and fitted.score(X, y) > 0.8


def test_predictions_on_digits_agree_with_linearsvc():
    X, y = load_digits(return_X_y=True)
    X = Normalizer().fit_transform(X).astype(np.float32)
    ours, theirs = solvers.LinearSVM(C=10).fit(X[:1200], y[:1200]), LinearSVC(C=10, tol=1e-6).fit(X[:1200], y[:1200])
    assert (ours.predict(X[1200:]) == theirs.predict(X[1200:])).mean() >= 0.995


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalisation", ["l2", "standard"])
def test_the_path_equals_fits_fold_by_fold(model, shape, normalisation):
    X, y = codes(*SHAPES[shape])
    X *= 3
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))
    Cs = [1, 0.01, 0.1] if normalisation == "l2" else [1e-3, 1e-4]
    path = solvers.PathSolver(model, normalisation, tol=1e-7).cross_validate(X, y, folds, Cs)
    scaler = {"l2": Normalizer, "standard": StandardScaler}[normalisation]()
    for C, accuracies in zip(Cs, path.accuracy, strict=True):
        for (fitted, held), accuracy in zip(folds, accuracies, strict=True):
            one = make_pipeline(clone(scaler), MODELS[model](C=C, tol=1e-7)).fit(X[fitted], y[fitted])
            assert abs(one.score(X[held], y[held]) - accuracy) < 1.5 / len(held)
    assert path.converged.all() and (path.seconds > 0).all()


@pytest.mark.parametrize("model", MODELS)
def test_the_path_is_the_same_in_parts(model, monkeypatch):
    X, y = codes(300, 50, 6)
    folds = list(StratifiedKFold(3).split(X, y))
    weight = np.arange(300) % 3
    solver = solvers.PathSolver(model, tol=1e-7)
    whole = solver.cross_validate(X, y, folds, [0.1, 1], weight)
    monkeypatch.setattr(path_module, "column_budget", lambda design, memory: 4)
    parts = solver.cross_validate(X, y, folds, [0.1, 1], weight)
    np.testing.assert_allclose(whole.accuracy, parts.accuracy, atol=0.011)


def overlapping(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Make codes that a linear classifier can learn by heart, and does: a few directions that tell, many of noise."""
    X, y = codes(n, 500, 4, seed=3)
    y = np.where(np.random.default_rng(3).random(n) < 0.25, (y + 1) % 4, y)
    return X, y


@pytest.mark.parametrize("C", [[0.01, 0.1, 1, 10, 100, 1000], [1000, 0.1, 10, 1, 100, 0.01]])
def test_hopeless_values_of_c_are_not_tried(C):
    X, y = overlapping()
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))
    every = solvers.PathSolver(exhaustive=True).cross_validate(X, y, folds, C)
    path = solvers.PathSolver().cross_validate(X, y, folds, C)
    assert every.Cs.tolist() == C
    tried = [C.index(value) for value in path.Cs]
    left_out = sorted(set(C) - set(path.Cs))
    assert left_out and min(left_out) > path.Cs.max(), "the largest are left out"
    assert tried == sorted(tried), "the others stay in the order in which they were given"
    np.testing.assert_allclose(path.accuracy, every.accuracy[tried], atol=0.02)
    best = every.accuracy.mean(1).argmax()
    assert path.Cs[path.accuracy.mean(1).argmax()] == C[best]


def test_a_low_accuracy_alone_makes_no_value_hopeless():
    """Codes that tell little, one common class: a small C predicts it always, and larger ones do worse."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 60)).astype(np.float32)
    y = np.where(rng.random(300) < 0.7, 0, rng.integers(1, 4, 300))
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))
    path = solvers.PathSolver(normalisation="l2").cross_validate(X, y, folds, [1e-3, 1e-2, 1e-1, 1, 10, 100])
    assert len(path.Cs) == 6
    means = path.accuracy.mean(1)
    assert path_module.clearly_lower(path.accuracy[4], path.accuracy[means.argmax()], 0.25)


def test_multi_label_rows_and_parts_of_the_folds_try_all_values(monkeypatch):
    X, y = overlapping()
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))
    Y = np.eye(4, dtype=int)[y]
    assert len(solvers.PathSolver().cross_validate(X, Y, folds, [0.1, 10, 1000]).Cs) == 3
    monkeypatch.setattr(path_module, "column_budget", lambda design, memory: 8)
    assert len(solvers.PathSolver().cross_validate(X, y, folds, [0.1, 10, 1000]).Cs) == 3


@pytest.mark.parametrize(
    ("accuracies", "lower"),
    [
        ([0.80, 0.79, 0.81, 0.80, 0.80], True),
        ([0.80, 0.79, 0.81, 0.80, 0.91], False),  # better in one fold
        ([0.89, 0.72, 0.89, 0.89, 0.89], False),  # lower by chance
        ([0.90, 0.90, 0.90, 0.90, 0.90], False),
    ],
)
def test_clearly_lower(accuracies, lower):
    others = np.full(5, 0.90)
    assert path_module.clearly_lower(np.array(accuracies), others, 0.25) is lower
    assert not path_module.clearly_lower(np.array([0.1]), np.array([0.9]), 0.25), "one fold tells nothing"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalisation", [None, "l2", "standard"])
def test_rows_on_disk_give_the_same_as_an_array(model, shape, normalisation, tmp_path):
    X, y = codes(*SHAPES[shape])
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))
    with h5py.File(tmp_path / "codes.h5", "w") as file:
        stored = file.create_dataset("values", data=X)
        solver = solvers.PathSolver(model, normalisation)
        here, there = (solver.cross_validate(rows, y, folds, [0.01, 0.1]) for rows in (X, stored))
        design = solvers.normalised_design(stored, [np.arange(len(y))], normalisation)
        fitted = MODELS[model](C=0.1).fit_design(design, y)
    np.testing.assert_array_equal(here.accuracy, there.accuracy)
    scaler = {None: FunctionTransformer, "l2": Normalizer, "standard": StandardScaler}[normalisation]()
    reference = MODELS[model](C=0.1).fit(scaler.fit_transform(X), y)
    np.testing.assert_allclose(fitted.coef_, reference.coef_, atol=2e-2 * abs(reference.coef_).max())
    weight = np.ones(len(y))
    objective = {"svm": hinges, "softmax": entropies}[model]
    ours, theirs = (np.sum(objective(fit, scaler.transform(X), y, weight)) for fit in (fitted, reference))
    assert abs(ours / theirs - 1) < 1e-4


def multi_label(n: int, d: int, n_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Make codes, and labels (n, n_labels) of 0 and 1: each row has two or three of them."""
    X, y = codes(n, d, n_labels)
    hot = np.eye(n_labels, dtype=np.uint8)
    return X, hot[y] | hot[(y + 1) % n_labels] | hot[np.where(X[:, 0] > 0.1, y, (y + 2) % n_labels)]


def test_each_of_several_labels_is_learned_against_its_absence():
    X, Y = multi_label(300, 60, 4)
    ours = solvers.LinearSVM(C=1).fit(X, Y)
    scores = ours.decision_function(X)
    for label in range(4):
        theirs = LinearSVC(C=1, tol=1e-7, max_iter=200_000).fit(X, Y[:, label])
        np.testing.assert_allclose(scores[:, label], theirs.decision_function(X), atol=0.02)
    np.testing.assert_array_equal(ours.predict(X), scores > 0)


def test_the_path_of_multi_label_rows_is_scored_by_mean_average_precision():
    X, Y = multi_label(300, 60, 4)
    Y[:, 3] = 0
    Y[90:110, 3] = 1
    folds = [(np.arange(100, 300), np.arange(100)), (np.arange(200), np.arange(200, 300))]
    path = solvers.PathSolver(normalisation="l2").cross_validate(X, Y, folds, [0.1, 1])
    for place, C in enumerate([0.1, 1]):
        for fold, (fitted, held) in enumerate(folds):
            labels = [label for label in range(4) if Y[held, label].any()]
            scores = [
                LinearSVC(C=C, max_iter=100_000).fit(X[fitted], Y[fitted, label]).decision_function(X[held])
                for label in labels
            ]
            precisions = [average_precision_score(Y[held, k], s) for k, s in zip(labels, scores, strict=True)]
            assert abs(path.accuracy[place, fold] - np.mean(precisions)) < 0.005


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("model", MODELS)
def test_held_out_scores_are_those_of_the_fold_that_did_not_see_the_row(model, n_classes):
    X, y = codes(200, 40, n_classes)
    folds = list(StratifiedKFold(4).split(X, y))[:3]
    scores = solvers.PathSolver(model, "l2", tol=1e-8).held_out_scores(X, y, folds, 10.0)
    for fitted, held in folds:
        one = MODELS[model](C=10.0, tol=1e-8).fit(X[fitted], y[fitted])
        np.testing.assert_allclose(scores[held], one.decision_function(X[held]).reshape(scores[held].shape), atol=0.05)
    assert np.isnan(scores[np.setdiff1d(np.arange(200), np.concatenate([held for _, held in folds]))]).all()


def test_a_class_that_a_fold_lacks_is_never_predicted():
    X, y = codes(120, 30, 4)
    folds = [(np.flatnonzero(y != 3), np.flatnonzero(y == 3)), (np.arange(0, 120, 2), np.arange(1, 120, 2))]
    for model in MODELS:
        assert (solvers.PathSolver(model).cross_validate(X, y, folds, [1.0]).accuracy[:, 0] == 0).all()


def test_constant_columns_and_rows_of_zeros_do_no_harm():
    X, y = codes(200, 30, 3)
    X[:, 3], X[:, 4], X[7] = 5, 0, 0
    folds = list(StratifiedKFold(3).split(X, y))
    for model, estimator in MODELS.items():
        assert np.isfinite(estimator().fit(X, y).coef_).all()
        for normalisation in (None, "l2", "standard"):
            solver = solvers.PathSolver(model, normalisation)
            assert solver.cross_validate(X, y, folds, [0.1]).accuracy.mean() > 0.5


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_the_remaining_decrease_is_predicted_from_how_the_decrease_slows_down(kind):
    falls = [[8, 4, 2, 1, 0.5, 0.25, 0.125, 0.0625, 0.03125], [2.0] * 9, [0.0] * 9, [2.0**n for n in range(9)]]
    values = [kind(column) for column in 1000 - np.cumsum(falls, 1).T]
    xp = np if kind is np.array else torch
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        halving, even, still, faster = (float(left) for left in remaining_decrease(values, xp))
    lately = sum(falls[0][5:])
    assert lately / 3 <= halving <= 2 * lately and halving >= 0.03125
    assert (even, still, faster) == (np.inf, 0, np.inf)


def test_the_same_on_torch_tensors():
    pytest.importorskip("torch")
    for shape in ("tall", "wide"):
        X, y = codes(*SHAPES[shape])
        for model in MODELS.values():
            here, there = model(tol=1e-7).fit(X, y), model(tol=1e-7, device="cpu").fit(X, y)
            np.testing.assert_allclose(here.coef_, there.coef_, atol=2e-3)


def test_the_estimators_work_in_a_grid_search():
    X, y = codes(120, 20, 3)
    found = GridSearchCV(
        make_pipeline(StandardScaler(), solvers.LinearSVM()), {"linearsvm__C": [1e-3, 1e-2]}, cv=3
    ).fit(X, y)
    assert found.best_score_ > 0.6


@pytest.mark.parametrize("model", [solvers.LinearSVM, solvers.Softmax])
def test_stopping_before_convergence_gives_a_warning(model):
    X, y = codes(300, 60, 5)
    with pytest.warns(ConvergenceWarning, match="within 2 iterations"):
        assert (model(C=1000, max_iter=2).fit(X, y).n_iter_ <= 2).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model().fit(X, y)
    folds = [(np.arange(200), np.arange(200, 300))]
    assert not solvers.PathSolver(max_iter=1).cross_validate(X, y, folds, [1000]).converged.any()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"X": np.full((6, 2), np.nan, np.float32)}, "contains NaN"),
        ({"X": np.full((6, 2), np.inf, np.float32)}, "contains .*infinity"),
        ({"y": np.zeros(6, int)}, "of one class, .*needs two classes"),
        ({"sample_weight": np.array([1, 1, -2, 1, 1, 1.0])}, "not negative, but that of row 2 is -2"),
        ({"sample_weight": np.array([1, np.nan, 1, 1, 1, 1.0])}, "finite and not negative, but that of row 1 is nan"),
        ({"sample_weight": np.ones(5)}, "one weight for each of the 6 rows"),
        ({"sample_weight": np.zeros(6)}, "no row is left"),
        ({"sample_weight": np.arange(6) % 2}, "that have a weight are of one class"),
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_bad_input_is_refused_with_a_sentence(model, changes, sentence):
    arguments = {"X": np.arange(12, dtype=np.float32).reshape(6, 2), "y": np.arange(6) % 2} | changes
    with pytest.raises(ValueError, match=sentence):
        MODELS[model]().fit(**arguments)
    with pytest.raises(ValueError, match=sentence):
        folds = [(np.arange(4), np.arange(4, 6))]
        solvers.PathSolver(model).cross_validate(folds=folds, Cs=[1], **arguments)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"Cs": [1, 0]}, "must be positive"),
        ({"Cs": []}, "must be one"),
        ({"folds": []}, "there must be a fold"),
        ({"model": "forest"}, "Unknown model 'forest'. Choose from: svm, softmax"),
        ({"folds": [(np.arange(4), np.arange(4, 6)), (np.array([0, 2]), np.arange(4))]}, "rows of fold 1 .*one class"),
        ({"normalisation": "max"}, "Unknown normalisation 'max'. Choose from: l2, standard"),
        ({"y": np.arange(5)}, r"X must be \(n, d\) and y \(n,\)"),
        ({"y": np.array([[0, 1]] * 3 + [[1, 1]] * 3)}, "Every row has the label of column 1"),
        ({"y": np.array([[0, 0]] * 3 + [[1, 0]] * 3)}, "No row has the label of column 1"),
        ({"y": np.array([[0, 2]] * 3 + [[1, 0]] * 3)}, "a matrix of 0 and 1"),
        ({"y": np.array([[0, 1]] * 3 + [[1, 0]] * 3), "model": "softmax"}, "one label per row.* Take the SVM"),
    ],
)
def test_a_search_that_cannot_be_is_refused(changes, sentence):
    X, y = codes(6, 4, 2)
    arguments = {"X": X, "y": y, "folds": [(np.arange(4), np.arange(4, 6))], "Cs": [1.0]} | changes
    solver = solvers.PathSolver(arguments.pop("model", "svm"), arguments.pop("normalisation", None))
    with pytest.raises(ValueError, match=sentence):
        solver.cross_validate(**arguments)


@pytest.mark.parametrize("name", ["C", "tol", "max_iter"])
def test_parameters_that_are_not_positive_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        solvers.LinearSVM(**{name: 0}).fit(*codes(6, 4, 2))
