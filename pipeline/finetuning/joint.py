"""Training of a target and a source on one trunk, with a head each and fixed or learned weights of the source classes.

Zhu, Arik, Yang and Pfister, "Learning to Transfer Learn" (L2TL), 2019, arXiv 1908.11406.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline.finetuning import evaluation
from pipeline.finetuning.agreement import GradientAgreement
from pipeline.finetuning.auxiliary import Auxiliary, Place, Term
from pipeline.finetuning.batches import BatchLoader
from pipeline.finetuning.head import Head
from pipeline.finetuning.initialization import TrainValSplit
from pipeline.finetuning.model import SOURCE_HEAD, ParameterGroup, SourceNetwork, TunableNetwork, groups_of_head
from pipeline.finetuning.plan import JointPlan, LearnedSettings, Plan
from pipeline.finetuning.recipes import Recipe
from pipeline.finetuning.reinforce import Policy
from pipeline.finetuning.runtime import RuntimeConfig
from pipeline.finetuning.source import Chosen, Source
from pipeline.finetuning.weighing import (
    GRADIENT,
    Action,
    AgreedWeights,
    FixedWeights,
    LearnedWeights,
    Measured,
    Weighing,
)

RANDOM_STREAM = 0x50
"""Keeps the random numbers of the source apart from those of the target."""


class JointSource(Auxiliary):
    """Adds alpha · the weighted cross-entropy of a batch of source images to each step.

    All that is random comes from (seed, epoch, step), so that each process draws the same images, of which it reads its
    share. pool: how many images are drawn for each one that is kept.
    """

    def __init__(
        self,
        source: Source,
        weighing: Weighing,
        joined: SourceNetwork,
        recipe: Recipe,
        seed: int,
        pool: int,
        runtime: RuntimeConfig,
    ) -> None:
        self.source, self.weighing, self.recipe, self.seed, self.pool = source, weighing, recipe, seed, pool
        self.head, k = joined.head, len(source.manifest.classes)
        self.forward = torch.compile(joined) if runtime.compile else joined
        self.runtime, self.loader = runtime, loader_of(source, joined.trunk, runtime)
        self.chosen = Chosen(np.empty(0, np.int64), np.empty(0), np.zeros(k, bool))

    def parameter_groups(self, recipe: Recipe) -> list[ParameterGroup]:
        """Return the groups of the source's head."""
        return groups_of_head(SOURCE_HEAD, self.head, recipe)

    def begin_step(self, place: Place) -> list[Term]:
        """Return the source's loss; no term where nothing of the source counts."""
        rng = np.random.default_rng((self.seed, place.epoch, place.step, RANDOM_STREAM))
        action, keep = self.weighing.act(place, rng), self.recipe.batch_size
        self.chosen = self.source.choose(action.weights, keep, self.pool, rng)
        if not len(self.chosen.rows) or not action.alpha:
            return []
        own = slice(self.runtime.processes.rank, None, self.runtime.processes.count)
        rows, weights = self.chosen.rows[own], self.chosen.weights[own]
        batch = np.stack([rows, np.zeros_like(rows)], 1)
        images, labels = next(
            self.loader.training([batch], self.recipe, place.side, (self.seed, place.epoch, place.step))
        )
        self.weighing.observe(images, labels)
        factors = torch.from_numpy(action.alpha * weights).float().to(images.device)
        return [Term(self.forward, images, labels, factors, keep)]

    def end_step(self, place: Place) -> None:
        """Let the weights learn from the step."""
        self.weighing.learn(place, self.chosen)

    def state(self) -> dict[str, Any]:
        """Return the head of the source, and what the weights have learned."""
        return {"head": self.head.state_dict(), "weighing": self.weighing.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over an earlier `state`."""
        self.head.load_state_dict(state["head"])
        self.weighing.restore(state["weighing"])


def loader_of(source: Source, network: TunableNetwork, runtime: RuntimeConfig) -> BatchLoader:
    """Return what reads the source's images as the network sees the target's, but for the value that is white."""
    transform = replace(network.transform, max_value=source.manifest.max_value)
    return BatchLoader(source.manifest, transform, runtime.device, runtime.threads)


def reward_meter(
    network: TunableNetwork, data: TrainValSplit, batch_norm: str, runtime: RuntimeConfig
) -> Callable[[], Measured]:
    """Return what looks at the reward images, as the network is then, and leaves it in the mode of training."""
    loader = BatchLoader(data.manifest, network.transform, runtime.device, runtime.threads)

    def measure() -> Measured:
        network.set_mode(False, batch_norm)
        loss, correct = evaluation.evaluate(network, loader, data.reward, runtime.processes)
        network.set_mode(True, batch_norm)
        return Measured(loss, correct.double().mean().item())

    return measure


def of_plan(plan: Plan, network: TunableNetwork, runtime: RuntimeConfig) -> Auxiliary:
    """Return what a plan adds to the loss of the target."""
    joint = plan.joint
    if joint is None:
        return Auxiliary()
    width, k = network.head.linear.in_features, len(joint.source.manifest.classes)
    head = Head.random(width, k, plan.recipe.dropout, plan.seed).to(runtime.device).train()
    joined = SourceNetwork(network, head)
    weighing = weighing_of(joint, plan, joined, runtime)
    return JointSource(joint.source, weighing, joined, plan.recipe, plan.seed, joint.pool, runtime)


def weighing_of(joint: JointPlan, plan: Plan, joined: SourceNetwork, runtime: RuntimeConfig) -> Weighing:
    """Return what decides how a source counts; joined: the trunk under the source's head."""
    how, k = joint.weights, len(joint.source.manifest.classes)
    if not isinstance(how, LearnedSettings):
        return FixedWeights(Action(how, joint.alpha))
    policy, network, batch_norm = Policy(k + 1, how.bins, how.rate, how.entropy), joined.trunk, plan.recipe.batch_norm
    if how.reward != GRADIENT:
        return LearnedWeights(policy, joint.alpha, how.reward, reward_meter(network, plan.data, batch_norm, runtime))
    loader = BatchLoader(plan.data.manifest, network.transform, runtime.device, runtime.threads)
    reward, processes = plan.data.reward, runtime.processes
    agreement = GradientAgreement(network, joined, loader, reward, k, batch_norm, processes)
    return AgreedWeights(policy, joint.alpha, agreement)


def learned_by(auxiliary: Auxiliary) -> LearnedWeights | None:
    """Return the weights that were learned in a run, None where none were."""
    weighing = auxiliary.weighing if isinstance(auxiliary, JointSource) else None
    return weighing if isinstance(weighing, LearnedWeights) else None
