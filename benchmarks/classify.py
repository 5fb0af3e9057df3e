"""Time the cross-validated search of our solvers against scikit-learn's GridSearchCV, each in a separate process."""

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

    Each class is a Gaussian in 128 latent dimensions whose scales fall as 1 / sqrt(rank). The latent vectors are
    projected to d dimensions at random; noise of 1.5 times their standard deviation is added; 0.8 is subtracted
    ("sparse": about 30% are positive, as in fc7) or 2 is added ("dense": nearly all are, as in avgpool); a ReLU
    follows. Classes overlap, so that accuracy is neither 0 nor 1.
    """
    rng = np.random.default_rng(seed)
    scales = (1 + np.arange(LATENT)) ** -0.5
    y = rng.integers(n_classes, size=n)
    latent = (0.4 * rng.normal(size=(n_classes, LATENT)))[y] + rng.normal(size=(n, LATENT))
    projection = rng.standard_normal((LATENT, d), np.float32) / np.sqrt((scales**2).sum(), dtype=np.float32)
    X = (latent * scales).astype(np.float32) @ projection
    for rows in np.array_split(np.arange(n), max(1, n // 1024)):
        X[rows] += 1.5 * rng.standard_normal((len(rows), d), np.float32) + (2 if density == "dense" else -0.8)
    np.maximum(X, 0, out=X)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return X, y


def ours(model: str) -> Callable[..., Any]:
    """Return a search with our path solver and a refit with our estimator."""

    def run(X: np.ndarray, y: np.ndarray, folds: list[Any], Cs: list[float]) -> Any:
        path = solvers.PathSolver(model).cross_validate(X, y, folds, Cs)
        accuracies = path.accuracy.mean(1)
        best = float(path.Cs[int(accuracies.argmax())])
        return accuracies, best, {"svm": solvers.LinearSVM, "softmax": solvers.Softmax}[model](C=best).fit(X, y)

    return run


def theirs(estimator: Any) -> Callable[..., Any]:
    """Return a search with GridSearchCV on all cores, which refits as well."""

    def run(X: np.ndarray, y: np.ndarray, folds: list[Any], Cs: list[float]) -> Any:
        search = GridSearchCV(estimator, {"C": Cs}, cv=folds, n_jobs=os.cpu_count()).fit(X, y)
        return search.cv_results_["mean_test_score"], search.best_params_["C"], search.best_estimator_

    return run


CONTENDERS: dict[str, Callable[..., Any]] = {
    "svm: ours": ours("svm"),
    "svm: LinearSVC primal": theirs(LinearSVC(dual=False, max_iter=10_000)),
    "svm: LinearSVC dual": theirs(LinearSVC(dual=True, max_iter=10_000, random_state=0)),
    "softmax: ours": ours("softmax"),
    "softmax: LogisticRegression": theirs(LogisticRegression(max_iter=2_000)),
}


def objective(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    """Return the objective of an SVM, summed over its classes, or of a softmax, in float64."""
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


def process_tree() -> list[Path]:
    """Return the entries in /proc of this process and of its descendants."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    tree = [os.getpid()]
    for parent in tree:
        tree += [child for child, its_parent in parents.items() if its_parent == parent]
    return [Path("/proc") / str(process) for process in tree]


def memory(process: Path, field: str) -> int:
    """Return a field of the status of a process, such as VmRSS or VmHWM, in bytes."""
    text = (process / "status").read_text()
    return 1024 * int(text.partition(f"{field}:")[2].split()[0])


def cpu_seconds(process: Path) -> float:
    """Return the CPU time of a process so far, in seconds."""
    ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def measure(folder: Path, name: str, n_test: int, n_folds: int, Cs: list[float]) -> dict[str, Any]:
    """Run a contender in this process and return its accuracies, time and memory.

    The peak memory is that of this process, less its memory before the codes were loaded, plus the whole peaks of its
    workers. It is an upper bound, as the codes that the workers share count in each.
    """
    Path("/proc/self/clear_refs").write_text("5")  # otherwise the peak includes that of the parent process
    memory_before, cpu_before = memory(Path("/proc/self"), "VmRSS"), cpu_seconds(Path("/proc/self"))
    X, y = np.load(folder / "X.npy"), np.load(folder / "y.npy")
    size, X, test, labels = X.nbytes, X[:-n_test], X[-n_test:], y[:-n_test]
    folds = list(StratifiedKFold(n_folds, shuffle=True, random_state=0).split(X, labels))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        accuracies, best, model = CONTENDERS[name](X, labels, folds, Cs)
    seconds = time.perf_counter() - start
    processes = process_tree()
    return {
        "name": name,
        "seconds": round(seconds, 2),
        "cpu": round(sum(map(cpu_seconds, processes)) - cpu_before, 1),
        "peak": round((sum(memory(process, "VmHWM") for process in processes) - memory_before) / size, 2),
        "best_C": best,
        "cv": [round(float(accuracy), 5) for accuracy in accuracies],
        "test": round(float(model.score(test, y[-n_test:])), 4),
        "objective": objective(model, X, labels),
    }


def excess(folder: Path, name: str, n_test: int, tol: float) -> list[dict[str, Any]]:
    """Return by which share our objective exceeds the converged one of scikit-learn, for each C."""
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
        reached = objective({"svm": solvers.LinearSVM, "softmax": solvers.Softmax}[name](C=C).fit(X, y), X, y)
        seconds = [round(middle - start, 1), round(time.perf_counter() - middle, 1)]
        rows.append({"C": C, "excess": reached / reference - 1, "seconds": seconds})
        print(
            f"{name} C {C:g}: objective {reached / reference - 1:+.1e} relative to the converged one, {seconds} s",
            flush=True,
        )
    return rows


def main() -> None:
    """Measure all contenders; print a table, and JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=3000, help="training rows (default: 3000)")
    parser.add_argument("--d", type=int, default=1024, help="width of the codes (default: 1024)")
    parser.add_argument("--classes", type=int, default=20, help="number of classes (default: 20)")
    parser.add_argument("--folds", type=int, default=5, help="number of folds (default: 5)")
    parser.add_argument(
        "--Cs", type=float, nargs="+", default=CS, metavar="C", help="values of C, ascending (default: 1e-3 … 1e3)"
    )
    parser.add_argument(
        "--density",
        choices=["sparse", "dense"],
        default="sparse",
        help="codes like those of fc7 (sparse, the default) or of avgpool (dense)",
    )
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS, metavar="NAME")
    parser.add_argument("--repeat", type=int, default=1, help="number of rounds; the contenders alternate (default: 1)")
    parser.add_argument(
        "--converged",
        nargs="*",
        default=[],
        choices=["svm", "softmax"],
        help="models whose objective is compared with the converged one as well",
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    n_test = max(200, options.n // 5)
    if options.child:
        print(json.dumps(measure(Path(options.child[0]), options.child[1], n_test, options.folds, options.Cs)))
        return
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(compare(Path(name), options, n_test)))


def compare(folder: Path, options: argparse.Namespace, n_test: int) -> dict[str, Any]:
    """Measure each contender in a process, print its results as they come, and return all of them."""
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
