"""Near-duplicates equal brute force, in memory that is bounded, and chains that join everything are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Listing, put_codes
from helpers import CODES
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from pipeline.analysis import near_duplicates
from pipeline.analysis.grouping import describe
from pipeline.errors import PipelineError


def write(values: np.ndarray, path: Path = CODES, **spec: object) -> np.ndarray:
    """Write codes of one class, all for training; return the distances between all of them."""
    n = len(values)
    names, digests = zip(*((f"{row}.png", f"{row:064x}") for row in range(n)), strict=True)
    put_codes(path, values, Listing(names, [0] * n, ["train"] * n, digests, ["a"]), **spec)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    distances: np.ndarray = 1 - unit @ unit.T
    return distances


def families(n: int, size: int, width: int = 300) -> np.ndarray:
    """Return codes of n families of images that differ by a little noise."""
    rng = np.random.default_rng(0)
    return np.repeat(rng.random((n, width)), size, 0) * (1 + 0.03 * rng.normal(size=(n * size, width)))


@pytest.fixture(params=["at once", "tile by tile"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare all codes together, or in blocks of 7, chunks of 14 and tiles of 42."""
    if request.param == "tile by tile":
        monkeypatch.setattr("pipeline.codes.stored.BLOCK_BYTES", 4 * 300 * 7)
        monkeypatch.setattr(near_duplicates, "CHUNK_BYTES", 4 * 300 * 14)
        monkeypatch.setattr(near_duplicates, "TILE_CELLS", 42)


@pytest.mark.usefixtures("project", "blocks")
@pytest.mark.parametrize("share", [0.02, 0.2])
def test_groups_equal_brute_force(share: float) -> None:
    distances = write(np.random.default_rng(1).permutation(families(15, 4)))
    rows = np.delete(np.arange(60), [3, 40])
    limit = near_duplicates.distance_limit(CODES, rows, share)
    inside = distances[np.ix_(rows, rows)]
    assert limit == pytest.approx(share * np.median(inside[np.triu_indices(58, 1)]), rel=0.1)
    count, components = connected_components(csr_array(inside <= limit), directed=False)
    groups = near_duplicates.group_near_duplicates(CODES, rows, limit)
    assert len(np.unique(groups)) == count == 15
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        assert members[0] == group and len(set(components[members])) == 1


@pytest.mark.usefixtures("project", "blocks")
def test_the_nearest_of_other_images_equals_brute_force() -> None:
    distances = write(families(15, 4))
    ones, others = np.arange(1, 60, 6), np.delete(np.arange(60), np.arange(1, 60, 6))
    found = near_duplicates.find_near_duplicates(CODES, ones, others, 0.01)
    between = distances[np.ix_(ones, others)]
    assert sorted(found.pairs[:, 0]) == ones.tolist() and (np.diff(found.distances) >= 0).all()
    for (one, other), distance in zip(found.pairs.tolist(), found.distances, strict=True):
        assert other == others[between[ones == one].argmin()]
        assert distance == pytest.approx(distances[one, other], abs=1e-6)
    assert not len(near_duplicates.find_near_duplicates(CODES, ones, others[:0], 0.01).pairs)


@pytest.mark.usefixtures("project")
def test_joined_layers_are_compared_as_one() -> None:
    """Images that agree in one layer alone are no near-duplicates by both."""
    rng = np.random.default_rng(0)
    first, second = rng.random((30, 20)), rng.random((30, 40))
    first[1], first[3], second[3] = first[0], first[2], second[2]
    for name, values in (("fc6", first), ("fc7", second)):
        write(values, CODES.with_name(f"{name}.h5"), layer=name)
    groups = {
        name: near_duplicates.group_near_duplicates(CODES.with_name(f"{name}.h5"), np.arange(30), 1e-4)[:4].tolist()
        for name in ("fc6", "fc6+fc7")
    }
    assert groups == {"fc6": [0, 0, 2, 2], "fc6+fc7": [0, 1, 2, 2]}


@pytest.mark.usefixtures("project")
def test_a_chain_that_joins_most_images_is_refused() -> None:
    angles = np.concatenate([np.linspace(0, 0.8, 40), np.linspace(1, 1.5, 6)])
    write(np.stack([np.cos(angles), np.sin(angles)], 1))
    with pytest.raises(PipelineError, match=r"join 40 of 46 images to one group\. Take a smaller --near"):
        near_duplicates.group_near_duplicates(CODES, np.arange(46), 0.0005)
    assert len(np.unique(near_duplicates.group_near_duplicates(CODES, np.arange(46), 0.0001))) == 46


def test_what_was_found_is_said_with_names() -> None:
    paths = [f"{letter}.jpg" for letter in "abcdefg"]
    text = describe(np.array([0, 0, 2, 0, 4, 4, 0]), paths, "test images", "at most 0.1 apart")
    assert "(at most 0.1 apart): 6 of 7 test images fall into 2 groups, the largest of 4: 'a.jpg', 'b.jpg'" in text
    assert "'d.jpg', …" in text
    assert describe(np.arange(7), paths, "images", "0.1").startswith("No two of 7 images are near-duplicates")


@pytest.mark.usefixtures("project")
def test_where_all_may_be_near_a_sample_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    write(families(1, 60))
    monkeypatch.setattr("pipeline.analysis.neighbors.MAX_COMPARISONS", 30 * 30)
    found = near_duplicates.find_near_duplicates(CODES, np.arange(30), np.arange(30, 60), 0.01)
    assert found.checked.tolist() == sorted(found.pairs[:, 0]) == list(range(0, 30, 4))
