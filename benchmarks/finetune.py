"""Time our training loop against the plain loop of PyTorch's tutorial, from JPEG files; the loops alternate."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from pipeline.data import digits
from pipeline.data.folders import list_folder
from pipeline.data.manifest import ListedImage, read_manifest, write_manifest
from pipeline.finetuning import initialization, recipes
from pipeline.finetuning.model import TunableNetwork
from pipeline.finetuning.runtime import RuntimeConfig, choose_step_precision
from pipeline.finetuning.trainer import Trainer
from pipeline.images import parallel
from pipeline.networks.frozen import FrozenNetwork

CLASSES = 2


def write_photos(folder: Path, count: int) -> Path:
    """Write synthetic JPEG files of 500 × 375 pixels, smooth with some noise: they compress like photographs."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.asarray(smooth, np.int16) + rng.integers(-12, 13, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return folder


def tutorial(folder: Path, backbone: str, batch: int, device: str, workers: int) -> Callable[[], Iterator[int]]:
    """Return the tutorial's epoch: torchvision's transforms in a DataLoader, float32, NCHW, SGD with momentum."""
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    dataset = ImageFolder(str(folder), transforms.Compose([*steps, normalise]))
    loader = DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=workers)
    model = torchvision.models.get_model(backbone, weights=None, num_classes=CLASSES).to(device).train()
    optimiser, criterion = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9), nn.CrossEntropyLoss()

    def epoch() -> Iterator[int]:
        for inputs, labels in loader:
            inputs, labels = inputs.to(device), labels.to(device)
            optimiser.zero_grad()
            outputs = model(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimiser.step()
            loss.item()
            yield len(labels)

    return epoch


def ours(folder: Path, backbone: str, layer: str, batch: int, device: str, name: str) -> Callable[[], Iterator[int]]:
    """Return our epoch with a recipe: the same images, batch size, augmentation and steps; all layers train."""
    listed = [ListedImage(image.path, image.label, "train") for image in list_folder(folder).images]
    with tempfile.TemporaryDirectory() as made:
        write_manifest(Path(made), digits.add_digests(listed))
        manifest = read_manifest(Path(made))
    rows = np.arange(len(manifest.paths))
    recipe = recipes.choose(name, {"batch_size": batch, "augment": "crop", "flip": 0.5})
    start = initialization.from_random_head(FrozenNetwork(backbone, [layer], "random", "avg"), CLASSES, 0.0, 0)
    runtime = RuntimeConfig(device, parallel.default_threads(), choose_step_precision("auto", device))
    network = TunableNetwork(start.spec, start.head, "all").to(device)
    trainer = Trainer(network, recipe, initialization.TrainValSplit(manifest, rows, rows[:1]), 0, runtime)

    def epoch() -> Iterator[int]:
        trainer.progress.epoch, trainer.progress.step = trainer.progress.epoch + 1, 0
        yield trainer.train_epoch()

    return epoch


def main() -> None:
    """Time the loops; print a table, and JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--images", type=Path, help="folder with a subfolder per class (default: synthetic photographs)"
    )
    parser.add_argument("--count", type=int, default=96, help="number of synthetic photographs")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--layer", default="avgpool")
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 32], help="images per step; 4 in the tutorial")
    parser.add_argument(
        "--workers", type=int, default=4, help="workers of the tutorial's DataLoader; 4 in the tutorial"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        print(json.dumps(compare(options, options.images or write_photos(Path(made), options.count))))


def compare(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Return the images per second of each loop, the median over rounds, and their ratios."""
    loops = {
        f"tutorial, batch {n}": tutorial(folder, options.backbone, n, options.device, options.workers)
        for n in options.batch
    }
    for name in ("tutorial", "modern"):
        for n in options.batch:
            loops[f"ours ({name}), batch {n}"] = ours(folder, options.backbone, options.layer, n, options.device, name)
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(options.rounds + 1):
        for name, epoch in loops.items():
            start = time.perf_counter()
            images = sum(epoch())
            speed = images / (time.perf_counter() - start)
            print(f"round {number}: {name:28}{speed:8.2f} images/s", flush=True)
            if number > 0:  # the first round warms up
                speeds[name].append(speed)
    medians = {name: round(median(rounds), 2) for name, rounds in speeds.items()}
    for name, speed in medians.items():
        print(f"{name:28}{speed:8.2f} images/s, {min(speeds[name]):.2f}–{max(speeds[name]):.2f}", flush=True)
    plain = {n: medians[f"tutorial, batch {n}"] for n in options.batch}
    ratios = {
        f"{name}_{n}": round(medians[f"ours ({name}), batch {n}"] / plain[n], 3)
        for name in ("tutorial", "modern")
        for n in options.batch
    }
    best = max(value for name, value in medians.items() if name.startswith("ours"))
    return {
        "device": options.device,
        "cores": os.cpu_count(),
        "images_per_second": medians,
        "ratio_at_the_same_batch": ratios,
        "modern_over_the_tutorials_batch": round(best / plain[options.batch[0]], 3),
    }


if __name__ == "__main__":
    main()
