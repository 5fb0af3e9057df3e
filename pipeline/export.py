"""Write a saved classifier and its network as one ONNX file, or the codes of a dataset as a table for other tools.

Example: python -m pipeline.export --dataset digits --layer fc7 --model svm --out digits.onnx
"""

from __future__ import annotations

from pipeline import command_line

if __name__ == "__main__":  # help and mistakes do not wait for the imports below
    command_line.start("export")

from pathlib import Path

from pipeline import errors, files
from pipeline.classifiers import persistence
from pipeline.codes import reader, tables
from pipeline.codes.belonging import validate_classes, validate_dataset
from pipeline.config import Export
from pipeline.paths import Experiment, require_one_layer


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
    from pipeline.exporting import onnx_file  # imports torch, which codes as a table do not need
    from pipeline.networks import onnx
    from pipeline.networks.frozen import rebuild_network

    errors.require_packages("To export", onnx.PACKAGES, onnx.EXTRA)
    source = settings.classifier or address.classifier
    classifier = persistence.load(source)
    if not settings.classifier:
        validate_classes(source, classifier.classes, address.data)
    network = rebuild_network(classifier.spec, settings.weights).at(precision="fp32")
    file = onnx_file.export(classifier, network)
    difference = onnx_file.check(file, classifier, network)
    path = settings.out or source.with_suffix(".onnx")
    files.write_bytes(path, file)
    shape, count = ", ".join(map(str, onnx_file.noise(network, 1).shape[1:])), len(classifier.classes)
    compared = f"on {onnx_file.CHECKED} images of noise, those of onnxruntime differ by {difference:.1g} of the largest"
    print(
        f"{path} ({len(file) / 1e6:.1f} MB): from images (n, {shape}) uint8 to margins (n, {count}); {compared} at most"
    )
    if classifier.spec.precision != "fp32":
        print(f"It computes in fp32, while the classifier was trained on codes of {classifier.spec.precision}")
