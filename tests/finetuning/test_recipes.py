"""Schedules are those of torch up to rounding to steps; recipes that cannot be used are refused."""

from __future__ import annotations

import pytest
import torch

from pipeline import errors
from pipeline.finetuning import recipes
from pipeline.finetuning.recipes import Phase


def test_schedules_warm_up_and_decay() -> None:
    cosine, cycle = recipes.SCHEDULES["cosine"], recipes.SCHEDULES["one-cycle"]
    assert cosine(0, 20) == 0 and cosine(1, 20) == 1 and cosine(10.5, 20) == pytest.approx(0.5)
    assert cosine(20, 20) == pytest.approx(0, abs=1e-12)
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(reference, 0.1, total_steps=1001, pct_start=0.2, cycle_momentum=False)
    for step in range(1001):
        assert reference.param_groups[0]["lr"] == pytest.approx(0.1 * cycle(18 * step / 1000, 18), abs=5e-4)
        reference.step()
        if step < 1000:
            theirs.step()


def test_the_epochs_of_the_head_come_before_those_of_the_network() -> None:
    recipe = recipes.choose("modern", {"head_epochs": 2, "epochs": 3})
    assert [recipe.phase(epoch) for epoch in range(1, recipe.all_epochs + 1)] == [
        Phase("head", 0, 2),
        Phase("head", 1, 2),
        Phase("network", 0, 3),
        Phase("network", 1, 3),
        Phase("network", 2, 3),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr_head": -1.0}, "--lr-head -1.0 must be a number, 0 or more"),
        ({"lr_backbone": float("nan")}, "--lr-backbone nan must be a number"),
        ({"batch_size": 0}, "--batch-size must be 1 or more"),
        ({"flip": 1.5}, "--flip 1.5 is a share"),
        ({"augment": "rotate"}, "Unknown --augment 'rotate'. Choose from: "),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(errors.PipelineError, match=words):
        recipes.choose("modern", change)


def test_an_unknown_recipe_lists_the_choices() -> None:
    with pytest.raises(errors.PipelineError, match=r"Unknown recipe 'modem'\. Choose from: modern"):
        recipes.choose("modem", {})
