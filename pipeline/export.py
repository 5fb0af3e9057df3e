"""Write a saved classifier and its network as one ONNX file, or the codes of a dataset as a table for other tools.

Example: python -m pipeline.export --dataset digits --layer fc7 --model svm --out digits.onnx
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("export")

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.preprocessing import Normalizer, StandardScaler

from pipeline import errors, files
from pipeline.classifiers import persistence
from pipeline.classifiers.persistence import SavedClassifier
from pipeline.classifiers.preprocessing import Centred, SignedRoot
from pipeline.codes import reader, tables
from pipeline.codes.belonging import validate_dataset
from pipeline.codes.spec import join_codes
from pipeline.config import Export
from pipeline.images import views
from pipeline.networks.frozen import FrozenNetwork, rebuild_network
from pipeline.paths import LAYER_SEPARATOR, Experiment, require_one_layer

Transformation = Callable[[torch.Tensor], torch.Tensor]
MAX_BYTES = 2**31 - 2**20
"""ONNX files are protocol buffers, which hold 2 GiB; the parameters may take this much of it."""

CHECKED = 16
"""Number of images of noise on which the written network is compared with ours."""

TOLERANCE = 1e-3
"""Largest difference of an output that is accepted, relative to the largest output or to 1."""

SHOWN_CLASSES = 20
"""Number of classes that the model's description names; its metadata name all."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""Packages that only this command needs."""


def end_to_end(classifier: SavedClassifier, network: FrozenNetwork) -> torch.nn.Module:
    """Return one module from uint8 images, as the network takes them, to (n, classes) margins and probabilities.

    The classes, their order and the values are those of `persistence.margins` and `persistence.probabilities`; where
    the classifier has no probabilities, there are margins alone.
    """
    normalise, weights, bias = normalisation(classifier), *map(torch.from_numpy, linear(classifier))
    layers, n_views = classifier.spec.layer.split(LAYER_SEPARATOR), classifier.spec.n_views
    inverse_temperature = softmax_factor(classifier)

    class EndToEnd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            codes = self.network(images)
            parts = [codes[layer].float().unflatten(1, (n_views, -1)) for layer in layers]
            joined = parts[0] if len(parts) == 1 else torch.cat([to_length_one(part) for part in parts], -1)
            outputs = [torch.nn.functional.linear(normalise(joined), weights, bias)]
            if inverse_temperature is not None:
                outputs.append(torch.softmax(inverse_temperature * outputs[0], -1))
            return tuple(output.mean(1) for output in outputs)

    return EndToEnd().eval()


def softmax_factor(classifier: SavedClassifier) -> float | None:
    """Return the factor of the margins whose softmax the probabilities are, None if the classifier has none."""
    if not hasattr(classifier.pipeline, "predict_proba"):
        return None
    temperature = getattr(classifier.pipeline[-1], "temperature_", 1.0)  # of a calibrated SVM
    two_classes = len(classifier.pipeline.classes_) == 2  # their margins are w·x + b and its negative
    return (0.5 if two_classes else 1.0) / temperature


def normalisation(classifier: SavedClassifier) -> Transformation:
    """Return the classifier's normalisation of the codes in operations of torch."""
    if len(classifier.pipeline) == 1:  # the head of a fine-tuned network may have none
        return lambda codes: codes
    kind = type(classifier.pipeline[0])
    if kind not in NORMALISATIONS:
        raise errors.unknown("normalisation", kind.__name__, (choice.__name__ for choice in NORMALISATIONS))
    return NORMALISATIONS[kind](classifier.pipeline[0])


def to_length_one(codes: torch.Tensor) -> torch.Tensor:
    """Return codes (…, d) scaled to length 1; those of length 0 stay 0."""
    lengths = codes.norm(dim=-1, keepdim=True)
    return codes / lengths.where(lengths > 0, 1)


def standardise(scaler: StandardScaler) -> Transformation:
    """Return a fitted scaler in operations of torch."""
    mean, scale = (torch.from_numpy(values.astype(np.float32)) for values in (scaler.mean_, scaler.scale_))
    return lambda codes: (codes - mean) / scale


def centre(scaler: Centred) -> Transformation:
    """Return a fitted centring in operations of torch."""
    mean = torch.from_numpy(scaler.mean_.astype(np.float32))
    return lambda codes: to_length_one(codes - mean)


NORMALISATIONS: dict[type[BaseEstimator], Callable[[Any], Transformation]] = {
    Normalizer: lambda scaler: to_length_one,
    SignedRoot: lambda scaler: lambda codes: to_length_one(codes.sign() * codes.abs().sqrt()),
    StandardScaler: standardise,
    Centred: centre,
}
"""The normalisations in operations of torch, from the fitted estimator."""


def linear(classifier: SavedClassifier) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights (classes, d) and biases (classes,) float32 that give all margins.

    Two classes share one vector, and a class without training images has weights 0 and a bias of minus infinity.
    """
    model = classifier.pipeline[-1]
    if not hasattr(model, "coef_"):
        raise errors.PipelineError(
            f"{type(model).__name__} is no linear classifier, and cannot be exported. Train svm, softmax, ridge or ncm."
        )
    coefficients = np.atleast_2d(model.coef_)  # that of ridge is a vector for two classes
    intercepts = np.ravel(model.intercept_)
    if len(coefficients) == 1:
        coefficients, intercepts = (np.concatenate([-values, values]) for values in (coefficients, intercepts))
    weights = np.zeros((len(classifier.classes), coefficients.shape[1]), np.float32)
    biases = np.full(len(classifier.classes), -np.inf, np.float32)
    weights[model.classes_], biases[model.classes_] = coefficients, intercepts
    return weights, biases


def export(classifier: SavedClassifier, network: FrozenNetwork) -> bytes:
    """Return the ONNX file of a classifier and the network that gives its codes."""
    model = end_to_end(classifier, network)
    if sum(value.nbytes for value in model.state_dict().values()) > MAX_BYTES:
        raise errors.PipelineError(
            "The network has more parameters than the 2 GB that an ONNX file holds. Choose an earlier layer, or "
            "a smaller backbone."
        )
    names = ["margins"] if softmax_factor(classifier) is None else ["margins", "probabilities"]
    try:
        program = translate(model, torch.from_numpy(noise(network, 2)), names)
    except Exception as error:  # what torch raises depends on the operations of the network
        raise errors.PipelineError(
            f"torch cannot write {classifier.spec.backbone} as ONNX ({errors.first_line(error).rstrip('.')}). Export "
            "another backbone, for instance efficientnet_lite0."
        ) from error
    program.model.metadata_props.update(metadata(classifier))
    program.model.doc_string = describe(classifier)
    return bytes(program.model_proto.SerializeToString())


def translate(model: torch.nn.Module, example: torch.Tensor, outputs: Sequence[str]) -> torch.onnx.ONNXProgram:
    """Return a module as an ONNX program that takes any number of images.

    example: some images; outputs: the names of its outputs.
    """
    graph = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
    graph = graph.run_decompositions({torch.ops.aten.adaptive_max_pool2d.default: _adaptive_max_pool})
    program = torch.onnx.export(graph, input_names=["images"], output_names=list(outputs), verbose=False)
    if program is None:
        raise RuntimeError("no program was made")
    return program


def _adaptive_max_pool(maps: torch.Tensor, cells: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return adaptive max pooling, which ONNX lacks, of maps of a fixed size; the places of the maxima are all 0."""
    values = maps
    for axis, (size, count) in enumerate(zip(maps.shape[2:], cells, strict=True), start=2):
        bounds = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        values = torch.cat([values.narrow(axis, low, high - low).amax(axis, True) for low, high in bounds], axis)
    return values, torch.zeros_like(values, dtype=torch.int64)


def metadata(classifier: SavedClassifier) -> dict[str, str]:
    """Return the metadata of the file, as JSON by name: the classes, how images are made ready, the spec of the codes.

    resize and crop are what torchvision's Resize and CenterCrop take; resize is null where the two do not tell it all.
    """
    transform = classifier.spec.transform
    plain = transform.views == "one" and (transform.fit == "whole" or not transform.crop_width)
    resize = (transform.size if transform.fit == "whole" else transform.resize) if plain else None
    content = {
        "classes": classifier.classes,
        "resize": resize,
        "interpolation": transform.interpolation,
        "crop": transform.size,
        "spec": classifier.spec.to_dict(),
    }
    return {name: json.dumps(value) for name, value in content.items()}


def describe(classifier: SavedClassifier) -> str:
    """Return what viewers of ONNX files show of the model: what goes in, and what comes out."""
    transform, names = classifier.spec.transform, classifier.classes
    height, width = transform.size
    shown = ", ".join(names[:SHOWN_CLASSES]) + (f", … ({len(names)} in all)" if len(names) > SHOWN_CLASSES else "")
    if transform.fit == "whole":
        made = f"each resized to {height}x{width}"
    else:
        made = f"each resized to a shorter side of {transform.resize}, of which the central {height}x{width} are taken"
    return (
        f"From upright RGB images of 0 to 255, {made} ({transform.interpolation}, antialiased, as Pillow and "
        f"torchvision do; views: {transform.views}), to margins, the highest of which is the predicted class's, and "
        f"probabilities where the classifier has them. The values are scaled within the model. Classes: {shown}."
    )


def noise(network: FrozenNetwork, count: int) -> np.ndarray:
    """Return images of noise as the network takes them.

    (count, 3, height, width) uint8, or (count, n_views, 3, height, width) where there are several views.
    """
    n_views, size = views.count(network.transform.views), network.transform.size
    shape = (count, n_views, 3, *size) if n_views > 1 else (count, 3, *size)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def check(file: bytes, classifier: SavedClassifier, network: FrozenNetwork) -> float:
    """Return the largest difference between the file's margins and ours, on images of noise.

    It is relative to the largest margin, or to 1. Raise PipelineError if an output differs by more than `TOLERANCE`.
    """
    import onnxruntime

    images = noise(network, CHECKED)
    codes_by_layer, layers = network.codes(images), classifier.spec.layer.split(LAYER_SEPARATOR)
    codes = join_codes([codes_by_layer[layer].astype(np.float32) for layer in layers], classifier.spec)
    margins, probabilities = persistence.margins(classifier, codes), persistence.probabilities(classifier, codes)
    ours = [margins] if probabilities is None else [margins, probabilities]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"images": images})
    differences = [largest_difference(*pair) for pair in zip(theirs, ours, strict=True)]
    if not max(differences) <= TOLERANCE:
        raise errors.PipelineError(
            f"In onnxruntime the model's outputs differ by {max(differences):.2g} of the largest, so nothing was "
            "written. Export another layer or backbone."
        )
    return differences[0]


def largest_difference(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value or to 1; infinite values are left out."""
    finite = np.isfinite(expected)
    return float(np.abs(outputs[finite] - expected[finite]).max() / max(1.0, np.abs(expected[finite]).max()))


def validate_packages() -> None:
    """Refuse to start without the packages that only this command needs."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise errors.PipelineError(f"To export, {' and '.join(missing)} must be installed: pip install -e '.[export]'.")


def run(settings: Export) -> None:
    """Export what the settings name."""
    address = Experiment(settings.dataset, settings.backbone, settings.layer, settings.model)
    if settings.codes:
        print(export_codes(address, settings.codes, settings.out or address.table(settings.codes)))
    else:
        export_classifier(settings, address)


def export_codes(address: Experiment, kind: str, path: Path) -> str:
    """Write the codes of a dataset, all its splits, and say what was written where; kind: a name of `WRITERS`."""
    require_one_layer(address.layer)
    validate_dataset(address.codes, address.data)
    with reader.open_stream(address.codes, {"backbone": address.backbone, "layer": address.layer}) as codes:
        written = tables.WRITERS[kind](path, codes)
        return f"{', '.join(map(str, written))}: {codes.n:,} × {codes.width}"


def export_classifier(settings: Export, address: Experiment) -> None:
    """Write the ONNX file of a classifier and its network, and say how near it comes to ours."""
    validate_packages()
    source = settings.classifier or address.classifier
    classifier = persistence.load(source)
    network = rebuild_network(classifier.spec, settings.weights).at(precision="fp32")
    file = export(classifier, network)
    difference = check(file, classifier, network)
    path = settings.out or source.with_suffix(".onnx")
    files.write_bytes(path, file)
    shape, count = ", ".join(map(str, noise(network, 1).shape[1:])), len(classifier.classes)
    print(
        f"{path} ({len(file) / 1e6:.1f} MB): from images (n, {shape}) uint8 to margins (n, {count}); "
        f"on {CHECKED} images of noise, those of onnxruntime differ by {difference:.1g} of the largest at most"
    )
    if classifier.spec.precision != "fp32":
        print(f"It computes in fp32, while the classifier was trained on codes of {classifier.spec.precision}")
