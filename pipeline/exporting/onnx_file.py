"""A classifier and its network as one ONNX file, compared with ours in onnxruntime before it is written."""

from __future__ import annotations

import json

import numpy as np
import torch

from pipeline import errors
from pipeline.classifiers import persistence
from pipeline.classifiers.persistence import SavedClassifier
from pipeline.codes.spec import join_codes
from pipeline.exporting.end_to_end import end_to_end, softmax_factor
from pipeline.images import views
from pipeline.networks import onnx
from pipeline.networks.frozen import FrozenNetwork
from pipeline.paths import LAYER_SEPARATOR

CHECKED = 16
"""Number of images of noise on which the written network is compared with ours."""

TOLERANCE = 1e-3
"""Largest difference of an output that is accepted, relative to the largest output or to 1."""

SHOWN_CLASSES = 20
"""Number of classes that the model's description names; its metadata name all."""


def export(classifier: SavedClassifier, network: FrozenNetwork) -> bytes:
    """Return the ONNX file of a classifier and the network that gives its codes."""
    model = end_to_end(classifier, network)
    if not onnx.fits(model):
        raise errors.PipelineError(
            "The network has more parameters than the 2 GB that an ONNX file holds. Choose an earlier layer, or "
            "a smaller backbone."
        )
    names = ["margins"] if softmax_factor(classifier) is None else ["margins", "probabilities"]
    try:
        program = onnx.translate(model, torch.from_numpy(noise(network, 2)), names)
    except Exception as error:  # what torch raises depends on the operations of the network
        raise errors.PipelineError(
            f"torch cannot write {classifier.spec.backbone} as ONNX ({errors.first_line(error).rstrip('.')}). Export "
            "another backbone, for instance efficientnet_lite0."
        ) from error
    program.model.metadata_props.update(metadata(classifier))
    program.model.doc_string = describe(classifier)
    return bytes(program.model_proto.SerializeToString())


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
    import onnxruntime  # of an extra

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
