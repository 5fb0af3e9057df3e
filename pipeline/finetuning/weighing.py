"""How much a source, and each of its classes, counts in a step: by fixed weights, or by learned ones (L2TL)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline.finetuning.auxiliary import Place
from pipeline.finetuning.reinforce import Policy
from pipeline.finetuning.source import Chosen

REWARDS: dict[str, Callable[[Measured, Measured], float]] = {
    "loss-drop": lambda before, after: before.loss - after.loss,
    "accuracy": lambda before, after: after.accuracy,
}
"""The reward of a step, from what was measured on the reward images before and after it; accuracy is the paper's."""


class Measured(NamedTuple):
    """Mean loss and top-1 accuracy on the reward images."""

    loss: float
    accuracy: float


class Action(NamedTuple):
    """How the source counts in a step: weights of its classes, (k,) float64 of 0 or more, and of its loss, alpha."""

    weights: np.ndarray
    alpha: float


class Weighing(Protocol):
    """What decides how the source counts, step by step."""

    def act(self, place: Place, rng: np.random.Generator) -> Action:
        """Decide for a step."""

    def learn(self, place: Place, chosen: Chosen) -> None:
        """Learn from what the step did; chosen: the source images that it saw."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over an earlier `state`."""


@dataclass(frozen=True)
class FixedWeights:
    """The same weights in all steps."""

    action: Action

    def act(self, place: Place, rng: np.random.Generator) -> Action:
        """Decide for a step."""
        return self.action

    def learn(self, place: Place, chosen: Chosen) -> None:
        """Learn nothing."""

    def state(self) -> dict[str, Any]:
        """Return nothing: there is no state."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over nothing."""


class LearnedWeights:
    """Weights that a policy draws for each step, and that the reward images judge after it.

    policy: an action for each source class, and a last one for alpha; max_alpha: what its value 1 stands for; reward:
    a key of `REWARDS`; measure: looks at the reward images.

    steps: for each step that was learned from (epoch, step, alpha, reward, its moving average); weights: (k,) the
    expected weights at the start, and then after each epoch with such a step.
    """

    def __init__(self, policy: Policy, max_alpha: float, reward: str, measure: Callable[[], Measured]) -> None:
        self.policy, self.max_alpha, self.reward, self.measure = policy, max_alpha, reward, measure
        self.bins = np.zeros(len(policy.logits), np.int64)
        self.before: Measured | None = None
        self.steps: list[tuple[int, int, float, float, float]] = []
        self.weights: dict[int, list[float]] = {0: self.expected().weights.tolist()}

    def expected(self) -> Action:
        """Return the mean of the policy's actions."""
        means = self.policy.means()
        return Action(means[:-1], means[-1] * self.max_alpha)

    def act(self, place: Place, rng: np.random.Generator) -> Action:
        """Draw the weights of a step."""
        if place.phase.name == "head":
            self.before = None
        elif self.before is None:
            self.before = self.measure()
        self.bins = self.policy.sample(rng)
        values = self.policy.values[self.bins]
        return Action(values[:-1], values[-1] * self.max_alpha)

    def learn(self, place: Place, chosen: Chosen) -> None:
        """Let the policy learn from the reward of the step; while only heads are trained, the source changes none."""
        if self.before is None:
            return
        after = self.measure()
        reward, self.before = REWARDS[self.reward](self.before, after), after
        alpha = self.bins[-1] > 0
        self.policy.learn(self.bins, reward, np.r_[chosen.drawn & alpha, len(chosen.rows) > 0])
        taken = float(self.policy.values[self.bins[-1]]) * self.max_alpha
        self.steps.append((place.epoch, place.step + 1, taken, reward, self.policy.baseline))
        self.weights[place.epoch] = self.expected().weights.tolist()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold: the policy, the last measure, and what was learned so far."""
        before = None if self.before is None else list(self.before)
        return {"policy": self.policy.state(), "before": before, "steps": self.steps, "weights": self.weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over an earlier `state`."""
        self.policy.restore(state["policy"])
        self.before = None if state["before"] is None else Measured(*state["before"])
        self.steps, self.weights = state["steps"], state["weights"]
