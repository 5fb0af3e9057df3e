"""Time the cross-validated search of our solvers against scikit-learn's GridSearchCV, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC

from pipeline.classifiers import solvers

CS = [1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3]
LATENT = 128


def codes(n: int, d: int, n_classes: int, density: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make codes (n, d) float32 >= 0, rows of length 1, and labels (n,).

    Each class is a Gaussian in 128 latent directions whose strengths fall as 1 / sqrt(rank); a random projection to
    d, as much noise and half again, less 0.8 ("sparse": some 30% are positive, as in fc7) or plus 2 ("dense": nearly
    all are, as in avgpool), and a ReLU. Classes overlap, so that accuracy is neither 0 nor 1.
    """
    rng = np.random.default_rng(seed)
    strengths = (1 + np.arange(LATENT)) ** -0.5
    y = rng.integers(n_classes, size=n)
    latent = (0.4 * rng.normal(size=(n_classes, LATENT)))[y] + rng.normal(size=(n, LATENT))
    projection = rng.standard_normal((LATENT, d), np.float32) / np.sqrt((strengths**2).sum(), dtype=np.float32)
    X = (latent * strengths).astype(np.float32) @ projection
    for rows in np.array_split(np.arange(n), max(1, n // 1024)):
        X[rows] += 1.5 * rng.standard_normal((len(rows), d), np.float32) + (2 if density == "dense" else -0.8)
    np.maximum(X, 0, out=X)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return X, y


def ours(model: str) -> Callable[..., Any]:
    """Return a search by our path and a refit by our estimator."""

    def run(X: np.ndarray, y: np.ndarray, folds: list[Any], Cs: list[float]) -> Any:
        accuracies = solvers.search_path(X, y, folds, Cs, model).accuracy.mean(1)
        best = Cs[int(accuracies.argmax())]
        return accuracies, best, {"svm": solvers.LinearSVM, "softmax": solvers.Softmax}[model](C=best).fit(X, y)

    return run


def theirs(estimator: Any) -> Callable[..., Any]:
    """Return a search by GridSearchCV over all cores, with its refit."""

    def run(X: np.ndarray, y: np.ndarray, folds: list[Any], Cs: list[float]) -> Any:
        found = GridSearchCV(estimator, {"C": Cs}, cv=folds, n_jobs=os.cpu_count()).fit(X, y)
        return found.cv_results_["mean_test_score"], found.best_params_["C"], found.best_estimator_

    return run


CONTENDERS: dict[str, Callable[..., Any]] = {
    "svm: ours": ours("svm"),
    "svm: LinearSVC primal": theirs(LinearSVC(dual=False, max_iter=10_000)),
    "svm: LinearSVC dual": theirs(LinearSVC(dual=True, max_iter=10_000, random_state=0)),
    "softmax: ours": ours("softmax"),
    "softmax: LogisticRegression": theirs(LogisticRegression(max_iter=2_000)),
}


def objective(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    """Return the objective, in float64, of the SVM (summed over classes) or of softmax."""
    coefficients, loss = model.coef_.astype(float), 0.0
    penalty = (coefficients**2).sum() / 2
    for rows in np.array_split(np.arange(len(y)), max(1, len(y) // 1024)):
        scores = X[rows].astype(float) @ coefficients.T + model.intercept_
        if isinstance(model, LinearSVC | solvers.LinearSVM):
            signs = np.where(y[rows, None] == model.classes_[-scores.shape[1] :], 1, -1)
            loss += (np.maximum(0, 1 - signs * scores) ** 2).sum()
        else:
            scores = scores if scores.shape[1] > 1 else np.hstack([-scores / 2, scores / 2])
            loss += (np.logaddexp.reduce(scores, 1) - scores[np.arange(len(rows)), y[rows]]).sum()
    if isinstance(model, LinearSVC | solvers.LinearSVM):
        penalty += (np.asarray(model.intercept_, float) ** 2).sum() / 2
    return float(penalty + model.C * loss)


def family() -> list[Path]:
    """Return the entries in /proc of this process and of its descendants."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [os.getpid()]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return [Path("/proc") / str(process) for process in found]


def memory(process: Path, field: str) -> int:
    """Return a field of the status of a process (VmRSS, VmHWM), in bytes."""
    text = (process / "status").read_text()
    return 1024 * int(text.partition(f"{field}:")[2].split()[0])


def cpu(process: Path) -> float:
    """Return the processor seconds a process has taken."""
    ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def measure(folder: Path, name: str, n_test: int, n_folds: int, Cs: list[float]) -> dict[str, Any]:
    """Run a contender in this process, whose memory before loading the codes is taken off its peak.

    The peaks of its workers are added whole, the codes they share counted in each: an upper bound.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak else counts the process this one was forked from
    before, spent = memory(Path("/proc/self"), "VmRSS"), cpu(Path("/proc/self"))
    X, y = np.load(folder / "X.npy"), np.load(folder / "y.npy")
    size, X, test, labels = X.nbytes, X[:-n_test], X[-n_test:], y[:-n_test]
    folds = list(StratifiedKFold(n_folds, shuffle=True, random_state=0).split(X, labels))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        accuracies, best, model = CONTENDERS[name](X, labels, folds, Cs)
    seconds = time.perf_counter() - start
    processes = family()
    return {
        "name": name,
        "seconds": round(seconds, 2),
        "cpu": round(sum(map(cpu, processes)) - spent, 1),
        "peak": round((sum(memory(process, "VmHWM") for process in processes) - before) / size, 2),
        "best_C": best,
        "cv": [round(float(accuracy), 5) for accuracy in accuracies],
        "test": round(float(model.score(test, y[-n_test:])), 4),
        "objective": objective(model, X, labels),
    }


def excess(folder: Path, name: str, n_test: int, tol: float) -> list[dict[str, Any]]:
    """Return how far our objective is above scikit-learn's converged one, for each C on all training rows."""
    X, y = np.load(folder / "X.npy")[:-n_test], np.load(folder / "y.npy")[:-n_test]
    rows = []
    for C in CS:
        exact = (
            LinearSVC(C=C, dual=False, tol=tol, max_iter=100_000)
            if name == "svm"
            else LogisticRegression(C=C, tol=tol, max_iter=20_000)
        )
        start = time.perf_counter()
        reference = objective(exact.fit(X.astype(float), y), X, y)
        middle = time.perf_counter()
        mine = objective({"svm": solvers.LinearSVM, "softmax": solvers.Softmax}[name](C=C).fit(X, y), X, y)
        seconds = [round(middle - start, 1), round(time.perf_counter() - middle, 1)]
        rows.append({"C": C, "excess": mine / reference - 1, "seconds": seconds})
        print(
            f"{name} C {C:g}: objective {mine / reference - 1:+.1e} beside the converged one, {seconds} s", flush=True
        )
    return rows


def main() -> None:
    """Measure all contenders; print a table, and JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=3000, help="training rows (default: 3000)")
    parser.add_argument("--d", type=int, default=1024, help="columns (default: 1024)")
    parser.add_argument("--classes", type=int, default=20, help="(default: 20)")
    parser.add_argument("--folds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--Cs", type=float, nargs="+", default=CS, metavar="C", help="ascending (default: 1e-3 … 1e3)")
    parser.add_argument("--density", choices=["sparse", "dense"], default="sparse", help="fc7-like or avgpool-like")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS, metavar="NAME")
    parser.add_argument("--repeat", type=int, default=1, help="rounds, in which the contenders take turns")
    parser.add_argument("--converged", nargs="*", default=[], choices=["svm", "softmax"], help="compare objectives too")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    n_test = max(200, options.n // 5)
    if options.child:
        print(json.dumps(measure(Path(options.child[0]), options.child[1], n_test, options.folds, options.Cs)))
        return
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(compare(Path(name), options, n_test)))


def compare(folder: Path, options: argparse.Namespace, n_test: int) -> dict[str, Any]:
    """Return what was measured, printing it as it comes."""
    X, y = codes(options.n + n_test, options.d, options.classes, options.density)
    np.save(folder / "X.npy", X)
    np.save(folder / "y.npy", y)
    print(
        f"{options.n} x {options.d}, {options.classes} classes, {(X > 0).mean():.0%} positive, {os.cpu_count()} cores"
    )
    del X
    rows = []
    for name in options.contenders * options.repeat:
        command = [sys.executable, "-m", "benchmarks.classify", "--n", str(options.n), "--folds", str(options.folds)]
        command += ["--Cs", *map(str, options.Cs), "--child", str(folder), name]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"{row['name']:27}{row['seconds']:8.1f} s{row['cpu']:8.1f} s of CPU, peak {row['peak']:5.2f} x codes, "
            f"C {row['best_C']:g}, CV {max(row['cv']):.4f}, test {row['test']:.4f}, objective {row['objective']:.6g}",
            flush=True,
        )
    exact = {name: excess(folder, name, n_test, 1e-6) for name in options.converged}
    return {"n": options.n, "d": options.d, "classes": options.classes, "runs": rows, "excess": exact}


if __name__ == "__main__":
    main()
