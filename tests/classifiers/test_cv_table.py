"""A row of the CV table is chosen by its rule, and a grid is extended where its edge is best."""

from __future__ import annotations

from pipeline.classifiers import cv_table
from pipeline.classifiers.cv_table import CVRow, FoldResult


def row(normalisation: str, C: float, accuracy: float) -> CVRow:
    """Return a row whose standard error is 0.02."""
    parameters, folds = {"C": C}, [accuracy] * 4
    return CVRow(
        normalisation=normalisation,
        parameters=parameters,
        accuracy=accuracy,
        standard_deviation=0.04,
        folds=folds,
        seconds=1.0,
        converged=4,
    )


def test_results_become_a_row_per_setting() -> None:
    values = [(1, 0.5, True), (10, 0.7, True), (1, 0.7, False), (10, 0.9, True)]
    results = [FoldResult("l2", {"C": C}, accuracy, 0.25, converged) for C, accuracy, converged in values]
    first, second = cv_table.tabulate(results)
    assert (first["folds"], first["seconds"], first["converged"]) == ([0.5, 0.7], 0.5, 1)
    assert abs(first["accuracy"] - 0.6) < 1e-12 and abs(first["standard_deviation"] - 0.02**0.5) < 1e-12
    assert cv_table.setting_of(second) == {"normalisation": "l2", "parameters": {"C": 10}}


def test_a_grid_is_extended_beyond_the_edge_where_the_best_row_lies() -> None:
    inside = [row("l2", 0.1, 0.8), row("l2", 1, 0.9), row("l2", 10, 0.8), row("standard", 5, 0.1)]
    assert cv_table.at_edge(inside) == [] and cv_table.extend_grid(inside) == {}
    assert cv_table.extend_grid(inside[:2]) == {"l2": {"C": [10.0]}} and cv_table.at_edge(inside[:2]) == ["C"]
    assert cv_table.extend_grid(inside[1:3]) == {"l2": {"C": [0.1]}}


def test_one_standard_error_chooses_the_most_regularised_of_the_good() -> None:
    table = [row("l2", 0.1, 0.87), row("l2", 1, 0.89), row("l2", 10, 0.9), row("standard", 0.01, 0.895)]
    assert cv_table.RULES["best"](table) is table[2]
    assert cv_table.RULES["one-standard-error"](table) is table[1]
    assert cv_table.RULES["one-standard-error"](table[:1]) is table[0]
