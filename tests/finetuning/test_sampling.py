"""Which images an epoch draws: in proportion to weights, without repetition, and the same in each process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pipeline import errors
from pipeline.finetuning.sampling import Sampling, count_earlier

LABELS = np.repeat(np.arange(3), [50, 30, 20])
WEIGHTS = np.array([0.0, 1.0, 3.0])


def test_without_weights_an_epoch_is_a_permutation_of_all_images() -> None:
    drawn = Sampling().draw(LABELS, 3, 2)
    np.testing.assert_array_equal(drawn[:, 0], np.random.default_rng((3, 2)).permutation(100))
    assert not drawn[:, 1].any()
    fewer = [Sampling(draws=40).draw(LABELS, 3, epoch)[:, 0] for epoch in (1, 2)]
    assert len(set(fewer[0])) == 40 and set(fewer[0]) == set(fewer[1]) and (fewer[0] != fewer[1]).any()


def test_images_are_drawn_in_proportion_to_the_weights_of_their_classes() -> None:
    sampling, n = Sampling(WEIGHTS, draws=900), 100
    counts = sum(np.bincount(sampling.draw(LABELS, 0, epoch)[:, 0], minlength=n) for epoch in range(1, n + 1))
    expected = WEIGHTS[LABELS] / WEIGHTS[LABELS].sum() * 900 * n
    deviations = np.abs(counts - expected) / np.sqrt(np.maximum(expected, 1))
    assert not counts[:50].any() and deviations.max() < 4
    np.testing.assert_array_equal(sampling.draw(LABELS, 0, 7), sampling.draw(LABELS, 0, 7))
    assert (sampling.draw(LABELS, 0, 7) != sampling.draw(LABELS, 0, 8)).any()


def test_without_repetition_heavy_images_are_drawn_first_and_no_image_twice() -> None:
    sampling = Sampling(WEIGHTS, "exhaust", 20)
    drawn = [sampling.draw(LABELS, seed, 1)[:, 0] for seed in range(200)]
    assert all(len(set(places)) == 20 for places in drawn)
    labels = LABELS[np.concatenate(drawn)]
    assert (
        not (labels == 0).any() and 1.5 < (labels == 2).mean() / (labels == 1).mean() < 2.0
    )  # 3 × 20 / 30, exhausting


def test_repeated_images_are_told_apart() -> None:
    assert count_earlier(np.array([5, 3, 5, 5, 3, 0])).tolist() == [0, 0, 1, 2, 1, 0]


def test_sampling_and_weighted_losses_have_the_same_gradient_in_expectation() -> None:
    logits = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.from_numpy(LABELS)
    shares = Sampling(WEIGHTS).shares(LABELS)
    factors = Sampling(WEIGHTS, "loss").loss_weights(LABELS)
    assert factors is not None and Sampling(WEIGHTS).loss_weights(LABELS) is None
    gradients = []
    for of_image in (torch.from_numpy(shares), torch.from_numpy(factors[LABELS] / 100)):
        leaf = logits.clone().requires_grad_()
        (cross_entropy(leaf, labels, reduction="none") * of_image).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (Sampling(np.array([0.0, 0.0, 0.0])), "have the weight 0"),
        (Sampling(draws=101), "only 100 of the training images can be drawn without repetition"),
        (Sampling(WEIGHTS, "exhaust", 51), "only 50 of the training images"),
        (Sampling(WEIGHTS, "exhaust"), "needs fewer --draws than the 100"),
    ],
)
def test_draws_that_the_images_do_not_allow_are_one_sentence(sampling: Sampling, words: str) -> None:
    with pytest.raises(errors.PipelineError, match=words):
        sampling.validate(LABELS)
