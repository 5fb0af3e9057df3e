"""A policy of independent categorical actions, learned by REINFORCE from one reward per step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.distributions import Categorical

MOMENTUM = 0.95
"""Share of the averages over earlier rewards that a new reward leaves; the authors' value."""

Tensor = torch.Tensor


class Policy:
    """One distribution over n_bins values per action (Williams, "REINFORCE", 1992), on the CPU in float64.

    logits: (n_actions, n_bins), 0 at the start: all values equally likely; rate: of Adam; entropy: the factor of the
    mean entropy of the distributions, which is added to what is maximised. Rewards count by their distance from a
    moving average, in standard deviations: the same rate and entropy thus suit rewards of any unit.
    """

    def __init__(self, n_actions: int, n_bins: int, rate: float, entropy: float) -> None:
        self.logits = torch.zeros(n_actions, n_bins, dtype=torch.float64, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.logits], lr=rate)
        self.entropy = entropy
        self.baseline, self.variance, self.rewards = 0.0, 0.0, 0

    @property
    def values(self) -> np.ndarray:
        """(n_bins,), what the actions may be: 0, 1/n_bins, …, (n_bins - 1)/n_bins."""
        n_bins = self.logits.shape[1]
        values: np.ndarray = np.arange(n_bins) / n_bins
        return values

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a bin for each action, (n_actions,) int64."""
        edges = self.probabilities().cumsum(1)
        bins: np.ndarray = (rng.random((len(edges), 1)) * edges[:, -1:] >= edges).sum(1)
        return bins

    def probabilities(self) -> np.ndarray:
        """Return the probability of each bin of each action, (n_actions, n_bins)."""
        probabilities: np.ndarray = self.logits.detach().softmax(1).numpy()
        return probabilities

    def means(self) -> np.ndarray:
        """Return the expected value of each action, (n_actions,)."""
        means: np.ndarray = self.probabilities() @ self.values
        return means

    def learn(self, bins: np.ndarray, reward: float, mattered: np.ndarray) -> None:
        """Take a step of Adam towards actions with higher rewards.

        bins: (n_actions,) int64, the actions taken; mattered: (n_actions,) bool, which of them can have changed the
        reward: the others would add noise, and nothing in expectation.
        """
        self._climb(self._advantage(reward) * log_probability(self.logits, bins, mattered))

    def follow(self, credits: np.ndarray) -> None:
        """Take a step of Adam towards the values of actions whose effects are known, and add up.

        credits: (n_actions,), the change of the reward by each unit of an action, 0 where nothing is known. The
        expected reward is then linear in the expected actions, so that its gradient needs no draws. Only the
        proportions of the credits count: they are divided by the root of their mean square.
        """
        scale = float(np.sqrt(np.mean(credits**2)))
        if not scale:
            return
        shares, values = self.logits.softmax(1), torch.from_numpy(self.values)
        self._climb(torch.from_numpy(credits / scale) @ (shares @ values))

    def _climb(self, gain: torch.Tensor) -> None:
        """Take a step of Adam up a function of the logits, and up their entropy."""
        entropy = Categorical(logits=self.logits).entropy().mean()
        self.optimiser.zero_grad()
        (-(gain + self.entropy * entropy)).backward()
        self.optimiser.step()

    def _advantage(self, reward: float) -> float:
        """Return how much better than usual a reward is, in standard deviations, and update what is usual."""
        distance = reward - self.baseline if self.rewards else 0.0
        if not self.rewards:
            self.baseline = reward
        # The mean of the rewards, until there are so many that the moving average forgets the first ones
        share = max(1 - MOMENTUM, 1 / (self.rewards + 1))
        self.baseline += share * distance
        self.variance += share * (distance**2 - self.variance)
        self.rewards += 1
        return distance / self.variance**0.5 if self.variance else 0.0

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs: logits, Adam's averages, the moving averages of rewards."""
        averages = {"baseline": self.baseline, "variance": self.variance, "rewards": self.rewards}
        return {"logits": self.logits.detach(), "optimiser": self.optimiser.state_dict(), **averages}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over an earlier `state`."""
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.baseline, self.variance, self.rewards = state["baseline"], state["variance"], state["rewards"]


def log_probability(logits: Tensor, bins: np.ndarray, mattered: np.ndarray) -> Tensor:
    """Return the log probability of the actions that mattered, the others left out; arguments as `Policy.learn`."""
    log_probabilities = Categorical(logits=logits).log_prob(torch.from_numpy(bins))
    return log_probabilities[torch.from_numpy(mattered)].sum()
