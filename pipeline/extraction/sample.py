"""The codes of some images of a dataset, of many layers, in kinds: after or before the ReLU, of one view or several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.networks.frozen import FrozenNetwork

from pipeline.codes import reader
from pipeline.codes.writer import claim_folder
from pipeline.data.manifest import Manifest
from pipeline.extraction import runner
from pipeline.images import parallel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """A kind of codes of the same images, which takes a pass of the network of its own; the fields are a spec's."""

    relu: str = "post"
    views: str = "one"


@dataclass(frozen=True)
class SampleCodes:
    """The codes of some images; root: the folder that holds a folder of codes for each kind."""

    root: Path

    def path(self, kind: Kind, layer: str) -> Path:
        """Return the file of the codes of a layer."""
        return self.root / f"{kind.relu}-{kind.views.replace(':', '-')}" / f"{layer}.h5"

    def read(self, kind: Kind, layer: str) -> reader.Codes[np.ndarray]:
        """Read the codes of a layer."""
        return reader.read(self.path(kind, layer), {"layer": layer})

    def write(
        self,
        manifest: Manifest,
        layers: Mapping[Kind, Sequence[str]],
        build: Callable[[Kind, Sequence[str]], FrozenNetwork],
    ) -> None:
        """Compute the codes that are missing, in one pass for each kind; log the images that cannot be read.

        layers: of each kind; build: returns the network that gives the codes of some layers.
        """
        for kind, names in layers.items():
            if names:
                network = build(kind, list(dict.fromkeys(names)))
                extract(manifest, network, self.path(kind, names[0]).parent)


def extract(manifest: Manifest, network: FrozenNetwork, folder: Path) -> None:
    """Write the codes of images to a folder."""
    runner.validate_disk_space(folder, network.dtype.itemsize * len(manifest.paths), network.widths)
    done = runner.Extraction(manifest, 0, parallel.default_threads())
    with claim_folder(folder):
        runner.extract(done, network, folder)
    for path, reason in done.bad.items():
        logger.warning("Skipped %r: %s", path, reason)
