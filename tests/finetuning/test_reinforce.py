"""The policy: its gradient is that of the expected reward, its entropy counts, and it is restored bit for bit."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch

from pipeline.finetuning.reinforce import Policy, log_probability

LOGITS = torch.tensor([[0.3, -0.2, 0.9], [-1.0, 0.4, 0.1]], dtype=torch.float64)
REWARDS = np.random.default_rng(0).normal(size=(3, 3))
"""A reward for each pair of bins that two classes may have."""

ALL = np.ones(2, bool)


def exact_gradient() -> torch.Tensor:
    """Return the gradient (2, 3) of the expected reward by the logits."""
    logits = LOGITS.clone().requires_grad_()
    first, second = logits.softmax(1)
    (first[:, None] * second[None, :] * torch.from_numpy(REWARDS)).sum().backward()
    assert logits.grad is not None
    return logits.grad


def gradient_of(bins: np.ndarray, mattered: np.ndarray = ALL) -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    log_probability(logits, bins, mattered).backward()
    assert logits.grad is not None
    return logits.grad


def test_the_mean_gradient_over_all_actions_is_the_exact_one() -> None:
    probabilities = LOGITS.softmax(1)
    mean = sum(
        probabilities[0, a] * probabilities[1, b] * (REWARDS[a, b] - 5.0) * gradient_of(np.array([a, b]))
        for a, b in product(range(3), repeat=2)
    )
    torch.testing.assert_close(mean, exact_gradient(), rtol=1e-12, atol=1e-12)  # whatever the baseline, here 5


def test_the_mean_gradient_over_sampled_actions_is_the_exact_one() -> None:
    policy, rng = Policy(2, 3, 0.1, 0.0), np.random.default_rng(1)
    policy.logits.data.copy_(LOGITS)
    bins = np.stack([policy.sample(rng) for _ in range(20_000)])
    probabilities = policy.probabilities()
    gradients = (np.eye(3)[bins] - probabilities) * REWARDS[bins[:, 0], bins[:, 1]][:, None, None]
    deviations = (gradients.mean(0) - exact_gradient().numpy()) / (gradients.std(0) / len(bins) ** 0.5)
    assert np.abs(deviations).max() < 4
    for row, gradient in zip(bins[:20], gradients[:20], strict=True):
        np.testing.assert_allclose(gradient_of(row) * REWARDS[tuple(row)], gradient)


def test_actions_that_did_not_matter_have_no_gradient() -> None:
    gradient = gradient_of(np.array([1, 2]), np.array([False, True]))
    assert not gradient[0].any() and gradient[1].any()
    assert not gradient_of(np.array([1, 2]), np.array([False, False])).any()


@pytest.mark.parametrize(("entropy", "direction"), [(0.0, 0), (0.1, 1)])
def test_the_entropy_bonus_is_in_the_objective(entropy: float, direction: int) -> None:
    policy = Policy(2, 3, 0.01, entropy)
    policy.logits.data.copy_(LOGITS)
    before = torch.distributions.Categorical(logits=LOGITS).entropy()
    for _ in range(5):
        policy.learn(np.array([0, 0]), 1.0, ALL)  # a reward that is always the same tells nothing
    after = torch.distributions.Categorical(logits=policy.logits.detach()).entropy()
    assert (after - before).sign().tolist() == [direction, direction]


def test_rewards_of_any_unit_teach_the_same() -> None:
    policies = [Policy(2, 4, 0.1, 0.01) for _ in range(2)]
    rng = np.random.default_rng(2)
    for _ in range(300):
        bins = policies[0].sample(rng)
        reward = float(bins[0] - bins[1] + rng.normal())
        for policy, unit in zip(policies, (1.0, 1e-6), strict=True):
            policy.learn(bins, 3 + unit * reward if unit == 1 else unit * (3 + reward), ALL)
    means = policies[0].means()
    assert means[0] > 0.6 > 0.15 > means[1]
    np.testing.assert_allclose(means, policies[1].means(), rtol=1e-6)


def test_a_restored_policy_goes_on_bit_for_bit() -> None:
    whole, rng = Policy(2, 3, 0.1, 0.01), np.random.default_rng(3)
    for _ in range(7):
        whole.learn(whole.sample(rng), rng.normal(), ALL)
    resumed = Policy(2, 3, 0.1, 0.01)
    resumed.restore(copy.deepcopy(whole.state()))
    for policy in (whole, resumed):
        rng = np.random.default_rng(4)
        for _ in range(5):
            policy.learn(policy.sample(rng), rng.normal(), ALL)
    assert torch.equal(whole.logits, resumed.logits)


def test_known_effects_are_followed_without_draws_and_in_any_unit() -> None:
    policies = [Policy(3, 4, 0.1, 0.0) for _ in range(2)]
    for policy, unit in zip(policies, (1.0, 1e-6), strict=True):
        for _ in range(20):
            policy.follow(unit * np.array([2.0, -1.0, 0.0]))
        policy.follow(np.zeros(3))
    means = policies[0].means()
    assert means[0] > 0.6 > 0.375 == pytest.approx(means[2]) and means[1] < 0.15
    np.testing.assert_allclose(policies[1].means(), means, rtol=1e-6)
