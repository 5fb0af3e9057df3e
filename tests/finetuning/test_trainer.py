"""Training: what is frozen does not change, and the learning rates are those of the recipe."""

from __future__ import annotations

import pytest
import torch
from conftest import write_photos

from pipeline import errors
from pipeline.data import digits
from pipeline.data.folders import list_folder
from pipeline.data.manifest import ListedImage, read_manifest, write_manifest
from pipeline.finetuning import initialization, recipes
from pipeline.finetuning.model import TunableNetwork
from pipeline.finetuning.runtime import RuntimeConfig
from pipeline.finetuning.trainer import Trainer
from pipeline.images.transforms import Framing
from pipeline.networks.frozen import FrozenNetwork

CLASSES = {"a": 6, "b": 6, "c": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> initialization.TrainValSplit:
    """Three classes of six images, of which four each are for training."""
    folder = write_photos(tmp_path_factory.mktemp("data") / "photos", CLASSES)
    listed = [ListedImage(image.path, image.label, "train") for image in list_folder(folder).images]
    write_manifest(folder, digits.add_digests(listed))
    return initialization.split_train_val(read_manifest(folder), 0.34, seed=0)


def recipe(**changes: object) -> recipes.Recipe:
    return recipes.choose("modern", {"epochs": 1, "batch_size": 5, "augment": "none", **changes})


def trainer(
    data: initialization.TrainValSplit, unfreeze: str, backbone: str = "tinyvgg", layer: str = "fc7", **changes: object
) -> Trainer:
    """Return a trainer with a random head, on the embedded weights of tinyvgg or random weights."""
    chosen = recipe(**changes)
    origin, framing = "default" if backbone == "tinyvgg" else "random", Framing(max_value=data.manifest.max_value)
    frozen = FrozenNetwork(backbone, [layer], origin, "avg", framing)
    start = initialization.from_random_head(frozen, len(data.manifest.classes), chosen.dropout, seed=0)
    network = TunableNetwork(start.spec, start.head, unfreeze)
    return Trainer(network, chosen, data, 0, RuntimeConfig())


def tensors(network: TunableNetwork) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.graph.state_dict().items()}


def changed(run: Trainer) -> set[str]:
    """Train, and return the names of the backbone's tensors whose bits changed, before the best are restored."""
    before, after = tensors(run.network), {}
    for _ in run.run():
        after = tensors(run.network)
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


# What is frozen


@pytest.mark.parametrize("name", ["tutorial", "modern", "scratch"])
def test_with_unfreeze_none_nothing_of_the_backbone_changes(data: initialization.TrainValSplit, name: str) -> None:
    plan = recipes.choose(name, {"epochs": 2, "batch_size": 5})
    run = trainer(data, "none", **vars(plan))
    before = {name: value.clone() for name, value in run.network.head.state_dict().items()}
    assert changed(run) == set()
    assert any(not torch.equal(value, run.network.head.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("backbone", "layer", "unfreeze", "first"),
    [
        ("tinyvgg", "fc7", "conv7", "features.22."),
        ("tinyvgg", "fc7", "pool4", "features.22."),
        ("tinyvgg", "fc7", "features.18", "features.18."),
        ("tinyvgg", "fc7", "classifier.0", "classifier.0."),
        ("tinyvgg", "conv5", "conv4", "features.11."),
        ("resnet18", "avgpool", "layer4", "layer4.0."),
    ],
)
def test_all_tensors_from_the_layer_on_change_and_no_others(
    data: initialization.TrainValSplit, backbone: str, layer: str, unfreeze: str, first: str
) -> None:
    run = trainer(data, unfreeze, backbone, layer, batch_norm="trained", lr_backbone=0.01, weight_decay=0.1)
    names = list(run.network.graph.state_dict())
    expected = set(names[next(number for number, name in enumerate(names) if name.startswith(first)) :])
    assert changed(run) == expected


def test_batch_norm_keeps_its_statistics_when_they_are_frozen(data: initialization.TrainValSplit) -> None:
    kept = changed(trainer(data, "all", batch_norm="frozen"))
    assert not any("running" in name or "tracked" in name for name in kept)
    assert "features.1.weight" in kept
    assert any("running" in name for name in changed(trainer(data, "all", batch_norm="trained")))


def test_the_backbone_does_not_change_while_the_head_is_trained_alone(data: initialization.TrainValSplit) -> None:
    run = trainer(data, "all", head_epochs=2, batch_norm="trained")
    before, same = tensors(run.network), []
    for _ in run.run():
        same.append(all(torch.equal(value, before[name]) for name, value in tensors(run.network).items()))
    assert same == [True, True, True, False]
    assert [row["phase"] for row in run.progress.rows] == ["start", "head", "head", "network"]


def test_a_layer_after_the_codes_or_without_parameters_is_refused(data: initialization.TrainValSplit) -> None:
    with pytest.raises(errors.PipelineError, match="fc7 comes after conv5"):
        trainer(data, "fc7", layer="conv5")
    with pytest.raises(errors.PipelineError, match="nothing to train from pool4 to pool4"):
        trainer(data, "pool4", layer="pool4")
    with pytest.raises(errors.PipelineError, match=r"Unknown layer 'fc9' for tinyvgg\. Choose from: fc"):
        trainer(data, "fc9")


# Rates


def rates(run: Trainer) -> list[dict[str, float]]:
    """Train; return {group: rate} of every step."""
    seen: list[dict[str, float]] = []
    step = run.optimiser.step
    run.optimiser.step = lambda: (seen.append({g["name"]: g["lr"] for g in run.optimiser.param_groups}), step())[1]
    list(run.run())
    return seen


def test_step_rates_are_those_of_torch_at_every_epoch(data: initialization.TrainValSplit) -> None:
    plan = {"optimiser": "sgd", "schedule": "step", "epochs": 16, "batch_size": 6, "lr_head": 0.01, "patience": 0}
    run = trainer(data, "fc7", layer="fc7", lr_backbone=0.001, **plan)
    seen = rates(run)
    weight = torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": [weight], "lr": 0.01}, {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.001}]
    reference = torch.optim.SGD(groups)
    schedule = torch.optim.lr_scheduler.StepLR(reference, step_size=7, gamma=0.1)
    assert len(seen) == 16 * 2
    for epoch in range(16):
        expected = [group["lr"] for group in reference.param_groups]
        for rate in seen[2 * epoch : 2 * epoch + 2]:
            assert [rate["head"], rate["fc7"]] == pytest.approx(expected, rel=1e-9)
        reference.step()
        schedule.step()
    assert [row["lr_backbone"] for row in run.progress.rows][1:] == pytest.approx([0.001] * 7 + [1e-4] * 7 + [1e-5] * 2)


def test_each_layer_has_the_rate_of_its_depth(data: initialization.TrainValSplit) -> None:
    run = trainer(data, "conv6", schedule="constant", lr_head=0.01, lr_backbone=0.001, lr_decay=0.5)
    first = rates(run)[0]
    assert first == pytest.approx({"head": 0.01, "fc7": 0.001, "fc6": 5e-4, "conv7": 2.5e-4, "conv6": 1.25e-4})


def test_every_parameter_is_in_one_group_and_norms_and_biases_do_not_decay(data: initialization.TrainValSplit) -> None:
    run = trainer(data, "all", weight_decay=0.1)
    groups = run.optimiser.param_groups
    listed = [id(value) for group in groups for value in group["params"]]
    parameters = {id(value) for value in run.network.parameters()}
    assert len(listed) == len(set(listed)) and set(listed) == parameters
    for group in groups:
        assert all((value.ndim >= 2) == (group["weight_decay"] == 0.1) for value in group["params"])
