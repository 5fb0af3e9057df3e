"""prediction_lists: the cells of a large confusion matrix are limited."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import Outcome
from helpers import PAGE, read_page_data, train_and_evaluate, write_listed_codes

from pipeline.reporting import prediction_lists


@pytest.mark.slow
def test_many_images_and_classes_make_a_page_of_limited_size(run: Callable[..., Outcome]) -> None:
    """There are more classes than a matrix has room for: its largest cells are listed, and only some images shown."""
    rng = np.random.default_rng(0)
    classes = [f"class {number:03}" for number in range(250)]
    labels = [number % 250 for number in range(1500)]
    values = rng.random((1500, 300)) + 2 * np.eye(300)[np.array(labels)]
    splits = ["train"] * 500 + ["test"] * 1000
    write_listed_codes([f"{number}.png" for number in range(1500)], labels, splits, classes, values)
    train_and_evaluate(run, "softmax", grid="{l2: {C: [1]}}")
    assert run("report").code == 0
    cells = read_page_data()["experiments"][0]["confusion_cells"]
    assert len(cells) <= prediction_lists.LISTED_CELLS and all(cell[0] != cell[1] for cell in cells)
    assert PAGE.stat().st_size < 1_000_000
