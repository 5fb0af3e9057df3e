"""Write a saved classifier and its network as one ONNX file: pictures in, margins and probabilities out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.preprocessing import Normalizer, StandardScaler

if TYPE_CHECKING:
    import torch

    from pipeline.networks.frozen import FrozenNetwork

from pipeline import command_line, errors
from pipeline.classifiers import persistence
from pipeline.classifiers.preprocessing import SignedRoot
from pipeline.codes.spec import LAYER_SEPARATOR, join_codes
from pipeline.config import Export
from pipeline.images import views
from pipeline.paths import Experiment

EXAMPLE = "python -m pipeline.export --dataset digits --layer fc7 --model svm --out digits.onnx"
MAX_BYTES = 2**31 - 2**20
"""ONNX files are protocol buffers, which hold 2 GiB; the parameters may take this much of it."""

CHECKED = 16
TOLERANCE = 1e-3


def end_to_end(classifier: persistence.SavedClassifier, network: FrozenNetwork) -> torch.nn.Module:
    """Return one module from uint8 pictures, as `images.show` gives them, to (n, classes) margins, and probabilities.

    The classes, their order and the values are those of `saved.margins` and `saved.probabilities`.
    """
    import torch

    scale, weights, bias = scaling(classifier), *(map(torch.from_numpy, linear(classifier)))
    layers, number = classifier.spec.layer.split(LAYER_SEPARATOR), classifier.spec.n_views
    probable = hasattr(classifier.pipeline, "predict_proba")
    sharpness = 0.5 if len(classifier.pipeline.classes_) == 2 else 1.0  # two margins are w·x and its negative
    sharpness /= getattr(classifier.pipeline[-1], "temperature_", 1.0)  # of a calibrated SVM

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = self.network(pictures)
            parts = [found[layer].float().unflatten(1, (number, -1)) for layer in layers]
            codes = parts[0] if len(parts) == 1 else torch.cat([unit(part) for part in parts], -1)
            margins = torch.nn.functional.linear(scale(codes), weights, bias)
            answers = [margins, torch.softmax(sharpness * margins, -1)] if probable else [margins]
            return tuple(each.mean(1) for each in answers)

    return Whole().eval()


def scaling(classifier: persistence.SavedClassifier) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what the classifier does to the codes first, as operations of torch."""
    if len(classifier.pipeline) == 1:  # as of a fine-tuned network, whose head scales nothing
        return lambda codes: codes
    kind = type(classifier.pipeline[0])
    if kind not in SCALINGS:
        raise errors.unknown("normalisation", kind.__name__, (known.__name__ for known in SCALINGS))
    return SCALINGS[kind](classifier.pipeline[0])


def unit(codes: torch.Tensor) -> torch.Tensor:
    """Return codes (…, d) brought to length 1, but for those of length 0."""
    lengths = codes.norm(dim=-1, keepdim=True)
    return codes / lengths.where(lengths > 0, 1)


def _to_length_one(scaler: Normalizer) -> Callable[[torch.Tensor], torch.Tensor]:
    return unit


def _to_root(scaler: SignedRoot) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda codes: unit(codes.sign() * codes.abs().sqrt())


def _to_variance_one(scaler: StandardScaler) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    mean, deviation = (torch.from_numpy(values.astype(np.float32)) for values in (scaler.mean_, scaler.scale_))
    return lambda codes: (codes - mean) / deviation


SCALINGS: dict[type[BaseEstimator], Callable[[Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    Normalizer: _to_length_one,
    SignedRoot: _to_root,
    StandardScaler: _to_variance_one,
}


def linear(classifier: persistence.SavedClassifier) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights (classes, d) and biases (classes,) float32 that give all margins.

    Two classes share one vector, and a class that was not trained has no weights and a bias of minus infinity.
    """
    model = classifier.pipeline[-1]
    if not hasattr(model, "coef_"):
        raise errors.PipelineError(
            f"{type(model).__name__} is no linear classifier, and cannot be exported. Train svm, softmax or ridge."
        )
    weights, bias = np.atleast_2d(model.coef_), np.ravel(model.intercept_)  # ridge of two classes has a vector
    if len(weights) == 1:
        weights, bias = np.concatenate([-weights, weights]), np.concatenate([-bias, bias])
    every = np.zeros((len(classifier.classes), weights.shape[1]), np.float32)
    offsets = np.full(len(classifier.classes), -np.inf, np.float32)
    every[model.classes_], offsets[model.classes_] = weights, bias
    return every, offsets


def export(classifier: persistence.SavedClassifier, network: FrozenNetwork) -> bytes:
    """Return the ONNX file of a classifier and the network that gives its codes."""
    import torch

    model = end_to_end(classifier, network)
    if sum(value.nbytes for value in model.state_dict().values()) > MAX_BYTES:
        raise errors.PipelineError(
            "The network has more parameters than the 2 GB that an ONNX file holds. Choose an earlier layer, or "
            "a smaller backbone."
        )
    example = torch.from_numpy(noise(network, 2))
    graph = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
    graph = graph.run_decompositions({torch.ops.aten.adaptive_max_pool2d.default: _max_by_cells})
    names = ["margins", "probabilities"][: 2 if hasattr(classifier.pipeline, "predict_proba") else 1]
    program = torch.onnx.export(graph, input_names=["pictures"], output_names=names, verbose=False)
    assert program is not None
    program.model.metadata_props.update(metadata(classifier))
    return bytes(program.model_proto.SerializeToString())


def _max_by_cells(maps: torch.Tensor, cells: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what adaptive max pooling, which ONNX lacks, gives of maps of a known size; the places are not told."""
    import torch

    height, width = maps.shape[2:]
    across = [maps[..., i * width // cells[1] : -(-(i + 1) * width // cells[1])].amax(3) for i in range(cells[1])]
    columns = torch.stack(across, 3)
    down = [columns[:, :, i * height // cells[0] : -(-(i + 1) * height // cells[0])].amax(2) for i in range(cells[0])]
    values = torch.stack(down, 2)
    return values, torch.zeros_like(values, dtype=torch.int64)


def metadata(classifier: persistence.SavedClassifier) -> Mapping[str, str]:
    """Return what the file says of itself, as JSON by name: the classes, and all that makes the codes."""
    return {
        name: json.dumps(value)
        for name, value in (("classes", classifier.classes), ("spec", classifier.spec.to_dict()))
    }


def noise(network: FrozenNetwork, count: int) -> np.ndarray:
    """Return made-up pictures as the network wants them: (count, 3, height, width) uint8, or of several views each."""
    number, size = views.count(network.transform.views), network.transform.size
    shape = (count, number, 3, *size) if number > 1 else (count, 3, *size)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def check(file: bytes, classifier: persistence.SavedClassifier, network: FrozenNetwork) -> float:
    """Return by how much the file's margins differ at most from ours, on pictures of noise; refuse answers far off."""
    import onnxruntime

    pictures = noise(network, CHECKED)
    found, layers = network.codes(pictures), classifier.spec.layer.split(LAYER_SEPARATOR)
    codes = join_codes([found[layer].astype(np.float32) for layer in layers], classifier.spec)
    ours = [persistence.margins(classifier, codes), persistence.probabilities(classifier, codes)]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"pictures": pictures})
    differences = [_farthest(*pair) for pair in zip(theirs, (each for each in ours if each is not None), strict=True)]
    if not max(differences) <= TOLERANCE:
        raise errors.PipelineError(
            f"In onnxruntime the model's answers are off by {max(differences):.2g} of the largest: nothing written."
        )
    return differences[0]


def _farthest(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, as a share of the largest value or of 1; infinite values are left out."""
    finite = np.isfinite(expected)
    return float(np.abs(found[finite] - expected[finite]).max() / max(1.0, np.abs(expected[finite]).max()))


def validate_packages() -> None:
    """Refuse to start without what is needed beyond the usual."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise errors.PipelineError(f"To export, {' and '.join(missing)} must be installed: pip install -e '.[export]'.")


def run(settings: Export) -> None:
    """Export what the settings name."""
    validate_packages()
    address = Experiment(settings.dataset, settings.backbone, settings.layer, settings.model)
    source = settings.classifier or address.classifier
    classifier = persistence.load(source)
    from pipeline.networks.frozen import rebuild_network

    network = rebuild_network(classifier.spec, settings.weights).at(precision="fp32")
    file = export(classifier, network)
    difference = check(file, classifier, network)
    path = settings.out or source.with_suffix(".onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(file)
    partial.replace(path)
    shape, count = ", ".join(map(str, noise(network, 1).shape[1:])), len(classifier.classes)
    print(
        f"{path} ({len(file) / 1e6:.1f} MB): from pictures (n, {shape}) uint8 to margins (n, {count}), "
        f"which onnxruntime gives to within {difference:.1g} of the largest, on {CHECKED} pictures of noise"
    )
    if classifier.spec.precision != "fp32":
        print(f"It computes in fp32, while the classifier was trained on codes of {classifier.spec.precision}")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return command_line.run_command("export", run, __doc__, EXAMPLE, argv)


if __name__ == "__main__":
    sys.exit(main())
