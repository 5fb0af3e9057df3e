"""How much a source, and each of its classes, counts in a step: by fixed weights, or by learned ones (L2TL)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from pipeline.finetuning.auxiliary import Place
from pipeline.finetuning.reinforce import Policy
from pipeline.finetuning.source import Chosen

REWARDS: dict[str, Callable[[Measured, Measured], float]] = {
    "loss-drop": lambda before, after: before.loss - after.loss,
    "accuracy": lambda before, after: after.accuracy,
}
"""The reward of a step, from what was measured on the reward images before and after it; accuracy is the paper's."""


GRADIENT = "gradient"
"""The reward that is measured class by class before a step: how the gradients of the source images agree with that of
the reward images on the layers that both share (after Ren et al., "Learning to Reweight Examples", ICML 2018)."""

Agreement = Callable[[torch.Tensor, torch.Tensor], tuple[np.ndarray, np.ndarray]]
"""Maps images (n, 3, side, side) and labels (n,) to the agreement (k,) and the share (k,) of each class."""


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

    def observe(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Look at the source images that a step is about to see, as they stand in this process."""

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

    def observe(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Look at nothing."""

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

    def observe(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Look at nothing: the reward tells what the images did."""

    def learn(self, place: Place, chosen: Chosen) -> None:
        """Let the policy learn from the reward of the step; while only heads are trained, the source changes none."""
        if self.before is None:
            return
        after = self.measure()
        reward, self.before = REWARDS[self.reward](self.before, after), after
        alpha = self.bins[-1] > 0
        self.policy.learn(self.bins, reward, np.r_[chosen.drawn & alpha, len(chosen.rows) > 0])
        self.note(place, reward)

    def note(self, place: Place, reward: float) -> None:
        """Note what a step was rewarded with, and the weights since."""
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


class AgreedWeights(LearnedWeights):
    """Weights that a policy draws for each step, judged class by class before it: do gradients agree?

    agreement: maps source images and labels to the mean agreement (k,) of each class, 0 of those without an image, and
    the share (k,) of the images that each class has; policy, max_alpha: as `LearnedWeights` takes them.
    """

    def __init__(self, policy: Policy, max_alpha: float, agreement: Agreement) -> None:
        super().__init__(policy, max_alpha, GRADIENT, lambda: Measured(0.0, 0.0))
        self.agreement = agreement
        self.credits = np.zeros(len(policy.logits))

    def observe(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Measure how the gradients of the source images agree with that of the reward images."""
        of_classes, shares = self.agreement(images, labels)
        weights = self.policy.values[self.bins[:-1]]
        self.credits = np.r_[of_classes, (of_classes * weights * shares).sum()]

    def learn(self, place: Place, chosen: Chosen) -> None:
        """Let the policy learn from the agreement; while only heads are trained, the source changes nothing."""
        if self.before is None or not len(chosen.rows) or not self.bins[-1]:
            return
        self.policy.follow(self.credits)
        self.note(place, float(self.credits[-1]))
