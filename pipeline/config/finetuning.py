"""The settings of fine-tuning, and of the weights by which it draws images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from pipeline.config.base import Address
from pipeline.config.fields import (
    CLASSIFIER,
    CLASSIFIER_SHOWN,
    CODES,
    CODES_SHOWN,
    DEVICE,
    FILES,
    GROUP_BY,
    MACHINE,
    NEAR,
    NEAR_DISTANCE,
    NETWORK,
    RECIPE,
    SOURCE,
    STRICT,
    THREADS,
    BatchSize,
    Integer,
    Name,
    Pool,
    Seed,
    Threads,
    setting,
)


def of_recipe(help: str, **bounds: Any) -> Any:
    """Describe a setting that a recipe has as well; it is None where the recipe's own holds."""
    return setting(None, help, group=RECIPE, **bounds)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WithSource(Address):
    """Settings of a source dataset that is trained with the target (L2TL)."""

    source: str = setting(
        "", "Train this prepared dataset with the target, on the same network with a head of its own.", group=SOURCE
    )
    source_weights: Name = setting(
        "uniform",
        "How much each source class counts: uniform, learned, or a CSV file with the columns class and weight.",
        group=SOURCE,
    )
    alpha: float = setting(
        1.0, "Factor of the source's loss; where weights are learned it is learned too, up to this.", gt=0, group=SOURCE
    )
    source_pool: Integer = setting(
        2, "Number of source images drawn for each one kept: those of the heaviest classes are.", ge=1, group=SOURCE
    )
    reward: Literal["loss-drop", "accuracy", "gradient"] = setting(
        "loss-drop",
        "What learned weights are rewarded for, on the reward images: what a step did, or with gradients that agree.",
        group=SOURCE,
    )
    reward_share: float = setting(
        0.2, "Share of the target's training images that are the reward images.", ge=0, lt=1, group=SOURCE
    )
    weight_bins: Integer = setting(
        10, "Number n of values of a learned weight, 0 to (n - 1)/n.", ge=2, le=1000, group=SOURCE
    )
    policy_rate: float = setting(0.1, "Learning rate of the weights.", ge=0, group=SOURCE)
    policy_entropy: float = setting(
        0.01, "Factor of the entropy bonus, which keeps learned weights from settling early.", ge=0, group=SOURCE
    )

    @property
    def learns_weights(self) -> bool:
        """Whether the weights of source classes are learned."""
        return self.source_weights == "learned"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Finetune(WithSource):
    """Settings of `finetune`; those of a recipe are None where the preset's value holds."""

    unfreeze: str = setting("all", "Train the backbone from this layer on: a layer, all, or none.")
    head: Literal["classifier", "random"] = setting(
        "classifier", "What the head starts from: the trained classifier of the codes, or random weights."
    )
    recipe: Literal["tutorial", "modern", "scratch"] = setting("modern", "Preset of the settings that are listed next.")
    val: float = setting(
        0.15, "Share of training images that decides which weights are best, without a val split.", ge=0, lt=1
    )
    seed: Seed = setting(0, "Seed of order, augmentation, dropout, validation share and random head.")
    group_by: str = setting("", GROUP_BY.format("on the same side of that share"))
    near_distance: float = setting(NEAR_DISTANCE, NEAR, gt=0, lt=1)
    sample_by: Path | None = setting(
        None,
        "CSV file with the weight of each class, as weigh writes it, by which training images are drawn.",
        shown="none",
    )
    sampling: Literal["repeat", "exhaust", "loss"] = setting(
        "repeat",
        "How these weights count: images are drawn in proportion and may come again (repeat), or may not (exhaust), or "
        "all are drawn and their losses are weighted (loss).",
    )
    draws: Integer = setting(0, "Number of training images per epoch; 0 for as many as there are.", ge=0)
    deterministic: bool = setting(False, "Compute the same bits in every run, on a GPU too.", group=MACHINE)
    restart: bool = setting(False, "Discard what an earlier run left unfinished.", in_file=False, group=MACHINE)
    checkpoint_every: float = setting(
        300.0, "Seconds between checkpoints within an epoch; each epoch ends with one as well.", ge=0, group=MACHINE
    )
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "Precision of the training steps.", group=MACHINE)
    compile: bool = setting(False, "Compile the steps, which pays on a GPU over many epochs.", group=MACHINE)
    device: Name = setting("auto", DEVICE, group=MACHINE)
    threads: Threads | None = setting(None, THREADS, shown="one per core", group=MACHINE)
    weights: str = setting(
        "", "Weights of the backbone, or where they are now.", shown="those of the classifier", group=NETWORK
    )
    pool: Pool = setting("", "How maps become vectors, with --head random.", shown="as for extract", group=NETWORK)
    codes: Path | None = setting(None, CODES, shown=CODES_SHOWN, in_file=False, group=FILES)
    classifier: Path | None = setting(None, CLASSIFIER, shown=CLASSIFIER_SHOWN, in_file=False, group=FILES)
    out: Path | None = setting(
        None,
        "File for the weights.",
        shown="models/DATASET/BACKBONE/LAYER-finetuned.safetensors",
        in_file=False,
        group=FILES,
    )
    report: Path | None = setting(
        None, "Folder for epochs.csv.", shown="reports/DATASET/BACKBONE/LAYER-finetuned", in_file=False, group=FILES
    )
    optimiser: Literal["sgd", "nesterov", "adamw"] | None = of_recipe("Optimiser of the steps.")
    schedule: Literal["constant", "step", "cosine", "one-cycle"] | None = of_recipe(
        "Schedule of all learning rates over the epochs."
    )
    epochs: Integer | None = of_recipe("Epochs of the network, or of the head alone with --unfreeze none.", ge=0)
    head_epochs: Integer | None = of_recipe("Epochs of the head alone, before those of the network.", ge=0)
    batch_size: BatchSize | None = of_recipe("Number of images per step.", ge=1)
    lr_head: float | None = of_recipe("Learning rate of the head.", ge=0)
    lr_backbone: float | None = of_recipe("Learning rate of the last layer before the head.", ge=0)
    lr_decay: float | None = of_recipe("Factor of the learning rate from each layer to the layer before it.", ge=0)
    weight_decay: float | None = of_recipe("Weight decay.", ge=0)
    decay_all: bool | None = of_recipe("Whether weight decay reaches biases and normalisation layers as well.")
    label_smoothing: float | None = of_recipe("Share of each label that is spread over all classes.", ge=0, le=1)
    dropout: float | None = of_recipe("Share of the codes that the head does not see in a step.", ge=0, le=1)
    batch_norm: Literal["frozen", "trained"] | None = of_recipe(
        "Statistics of batch norm in the trained layers: as they are (frozen), or those of each batch (trained)."
    )
    augment: Literal["none", "crop", "gentle", "shift"] | None = of_recipe("Augmentation of training images.")
    flip: float | None = of_recipe("Share of training images that are mirrored.", ge=0, le=1)
    patience: Integer | None = of_recipe(
        "Number of epochs without a better one after which training stops; 0 never stops.", ge=0
    )
    small_epochs: Integer | None = of_recipe("Number of first epochs of the network that see smaller images.", ge=0)
    small_side: Integer | None = of_recipe("Side of these smaller images, in pixels.", ge=0)

    def address_settings(self) -> list[str]:
        """Return the four words, and the classifier where another file holds it."""
        return [*super().address_settings(), *(["classifier"] if self.classifier else [])]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Weigh(Address):
    """Settings of `weigh`."""

    source: str = setting(
        "",
        "Source dataset whose classes are weighed, by its classifier of the same layer. Without it, the network weighs "
        "the classes that it was trained on by its own head.",
        in_file=False,
    )
    temperature: float = setting(
        1.0, "The network's scores are divided by it: above 1, weights become more alike.", gt=0, le=1000
    )
    weights: Name = setting(
        "default", "Weights of the backbone, whose own head weighs.", key="extract.weights", group=NETWORK
    )
    device: Name = setting("auto", DEVICE, group=MACHINE)
    out: Path | None = setting(
        None, "Folder for the results.", shown="reports/DATASET/BACKBONE/source_weights", in_file=False, group=FILES
    )
