"""How much images differ from those that a network was trained on, by the distance of their codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.analysis import transferability
from pipeline.codes import reader
from pipeline.images.transforms import Transform

FAR_FROM_SOURCE = 1.0
"""Distance to the source from which images count as different from it."""


def source_layer(backbone: str, transform: Transform) -> str | None:
    """Return the layer whose codes of the backbone's source have a known mean and covariance; None if there is none.

    transform: of the images that are to be compared with the source's; their views do not count.
    """
    from pipeline.networks import tinyvgg

    if backbone != "tinyvgg" or not _as_for_source(replace(transform, views=tinyvgg.TRANSFORM.views)):
        return None
    with np.load(tinyvgg.SOURCE_STATISTICS) as source:
        return str(source["layer"])


def _as_for_source(transform: Transform) -> bool:
    """Return whether images are seen as those of the source were: decoder and bit depth may differ."""
    from pipeline.networks import tinyvgg

    native = tinyvgg.TRANSFORM
    return replace(transform, decoder=native.decoder, max_value=native.max_value) == native


def measure_source_distance(codes: reader.Codes) -> float | None:
    """Return the distance to the source of the codes of `source_layer`; None if the source's were made otherwise."""
    from pipeline.networks import tinyvgg

    spec, averaged = codes.spec, ("avg", "avg4", "flatten")  # all of them keep the mean of a map of 4×4
    if spec.weights != "default" or spec.pool not in averaged or not _as_for_source(spec.transform):
        return None
    with np.load(tinyvgg.SOURCE_STATISTICS) as source:
        mean, cov = source["mean"], source["cov"]
    averages = codes.values.reshape(len(codes.values), len(mean), -1).mean(2)
    return distance_to_source(averages, mean, cov)


def distance_to_source(values: np.ndarray, mean: np.ndarray, cov: np.ndarray, seed: int = 0) -> float:
    """Return the distance of codes to those of the source: near 0 for source images, about 2 for handwritten digits.

    It is the Fréchet distance, minus that of an equally small sample of the source, in units of the source's variance.

    values: (n, d) codes; mean, cov: (d,), (d, d) of the source's codes.
    """
    mean, cov = mean.astype(np.float64), cov.astype(np.float64)
    sample = np.random.default_rng(seed).multivariate_normal(mean, cov, len(values), method="eigh")
    of_images, of_sample = (
        transferability.frechet(codes.mean(0), np.cov(codes.T), mean, cov)
        for codes in (values.astype(np.float64), sample)
    )
    return float((of_images - of_sample) / np.trace(cov))
