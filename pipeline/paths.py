"""Four words address an experiment: dataset, backbone, layer, model; their defaults stand in params.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Experiment:
    """Where the artifacts of one experiment lie, relative to the project's folder."""

    dataset: str
    backbone: str
    layer: str = ""
    model: str = ""

    @property
    def name(self) -> str:
        """The dataset's name: the last part, where it is given as a folder."""
        return Path(self.dataset).resolve().name

    @property
    def data(self) -> Path:
        """The prepared dataset: a folder with manifest.csv."""
        given = Path(self.dataset)
        return given if (given / "manifest.csv").exists() else Path("data", self.dataset)

    @property
    def features(self) -> Path:
        """The folder of the backbone's codes."""
        return Path("features", self.name, self.backbone)

    @property
    def codes(self) -> Path:
        """The HDF5 file of the layer's codes."""
        return self.features / f"{self.layer}.h5"

    @property
    def classifier(self) -> Path:
        """The saved classifier; its description is the .json beside it."""
        return Path("models", self.name, self.backbone, f"{self.layer}-{self.model}.skops")

    @property
    def report(self) -> Path:
        """The folder of the classifier's scores."""
        return Path("reports", self.name, self.backbone, f"{self.layer}-{self.model}")


ADDRESS_WORDS = ("dataset", "backbone", "layer", "model")
