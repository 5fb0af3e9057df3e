"""CNNCodes: the codes that extract writes, from images in any form, computed once, in scikit-learn's conventions."""

from __future__ import annotations

import doctest
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Outcome
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline, make_union
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

from pipeline import CNNCodes, errors
from pipeline.codes import reader
from pipeline.config import Extract
from pipeline.extraction import memory, transformer
from pipeline.networks import backbones
from pipeline.networks.frozen import FrozenNetwork

Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def forwarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Start with an empty cache; count the images that go through the network, by layer."""
    counts: Counter[str] = Counter()
    original = FrozenNetwork.forward

    def counted(network: FrozenNetwork, images: torch.Tensor) -> dict[str, torch.Tensor]:
        counts.update({layer: len(images) for layer in network.specs})
        return original(network, images)

    monkeypatch.setattr(FrozenNetwork, "forward", counted)
    monkeypatch.setattr(transformer, "CACHE", transformer.new_cache(transformer.CACHE_BYTES))
    yield counts
    transformer.build_network.cache_clear()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.png"))


def label(path: Path) -> str:
    return path.parent.name


# The same codes


def test_the_codes_are_those_that_extract_writes(run: Run, photos: Path) -> None:
    assert run("prepare", "--dataset", photos).code == 0
    flags = ("--layer", "pool3", "fc7", "--pool", "max", "--precision", "fp32")
    assert run("extract", "--dataset", "photos", *flags).code == 0
    for layer in ("pool3", "fc7"):
        stored = reader.read(Path("features/photos/tinyvgg", f"{layer}.h5"), {})
        codes = CNNCodes(layer=layer, pool="max", batch_size=7).fit_transform(
            [Path("data/photos", path) for path in stored.paths]
        )
        assert codes.dtype == np.float32
        np.testing.assert_allclose(codes, stored.values, rtol=1e-4, atol=1e-5)


def test_sizes_precisions_and_codes_before_the_relu(photos: Path) -> None:
    paths = files(photos)[:4]
    before = CNNCodes(relu="pre").fit_transform(paths)
    np.testing.assert_allclose(np.maximum(before, 0), CNNCodes().fit_transform(paths), atol=1e-5)
    assert CNNCodes(layer="pool3", pool="flatten", size="96x64").fit_transform(paths).shape == (4, 128 * 12 * 8)
    low = CNNCodes(precision="bf16").fit_transform(paths)
    assert low.dtype == np.float32 and 0 < np.abs(low - CNNCodes().fit_transform(paths)).max() < 0.1
    np.testing.assert_array_equal(CNNCodes(size=64).fit_transform(paths), CNNCodes().fit_transform(paths))


def test_the_defaults_are_those_of_extract() -> None:
    defaults = asdict(Extract())
    for name in ("backbone", "weights", "pool", "relu", "precision", "device", "batch_size", "size"):
        assert getattr(CNNCodes(), name) == defaults[name], name
    assert (CNNCodes().layer,) == defaults["layer"]


def test_paths_images_and_arrays_give_the_same(photos: Path) -> None:
    paths = files(photos)[:5]
    images = [Image.open(path) for path in paths]
    arrays = np.stack([np.asarray(image) for image in images])
    expected = CNNCodes().fit_transform(paths)
    for X in (list(map(str, paths)), images, arrays, list(arrays), np.array(paths), np.array(paths)[:, None]):
        np.testing.assert_array_equal(CNNCodes().fit_transform(X), expected)
    grey = arrays[..., 0]
    as_rgb = np.stack([grey] * 3, axis=-1)
    np.testing.assert_array_equal(CNNCodes().fit_transform(grey), CNNCodes().fit_transform(as_rgb))


def test_a_pil_image_is_rotated_and_composited_on_white_like_its_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 4), dtype=np.uint8)
    Image.fromarray(noise[..., :3]).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(noise).save(tmp_path / "clear.png")
    paths = [tmp_path / "turned.png", tmp_path / "clear.png"]
    np.testing.assert_array_equal(
        CNNCodes().fit_transform([Image.open(path) for path in paths]), CNNCodes().fit_transform(paths)
    )


# Once


def test_a_search_over_layers_extracts_each_layers_codes_once(photos: Path, forwarded: Counter[str]) -> None:
    paths = files(photos)
    model = make_pipeline(CNNCodes(batch_size=5), RidgeClassifier())
    search = GridSearchCV(
        model,
        {"cnncodes__layer": ["pool3", "fc6", "fc7"], "ridgeclassifier__alpha": [1, 10]},
        cv=3,
        return_train_score=True,
    )
    search.fit(paths, [label(path) for path in paths])
    assert search.best_score_ > 0.9 and not np.isnan(search.cv_results_["mean_test_score"]).any()
    assert search.predict(paths[:2]).tolist() == ["blue", "blue"]
    assert forwarded == {"pool3": 36, "fc6": 36, "fc7": 36}


def test_copies_are_computed_once_and_other_weights_again(photos: Path, forwarded: Counter[str]) -> None:
    one, two, *_ = files(photos)
    values = CNNCodes(batch_size=2).fit_transform([one, two, one, one, two, one])
    assert forwarded == {"fc7": 2} and (values[[2, 3, 5]] == values[0]).all() and (values[4] == values[1]).all()
    other = CNNCodes(weights="random").fit_transform([one])
    assert forwarded == {"fc7": 3} and not np.allclose(other[0], values[0])


def test_the_network_is_loaded_once_until_its_file_changes(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = backbones.load(backbones.get("tinyvgg"), "default")
    file = tmp_path / "mine.pth"
    torch.save(model.state_dict(), file)
    loads: list[str] = []
    original = backbones.load
    monkeypatch.setattr(backbones, "load", lambda *arguments: loads.append(arguments[1]) or original(*arguments))
    fitted = CNNCodes(weights=str(file)).fit(files(photos))
    before = fitted.transform(files(photos))
    assert loads == [str(file)]
    torch.save({name: value * 1.01 for name, value in model.state_dict().items()}, file)
    with pytest.raises(errors.PipelineError, match="changed after `fit`"):
        fitted.transform(files(photos))
    assert not np.allclose(fitted.fit_transform(files(photos)), before)


def test_the_cache_is_bounded_and_codes_are_correct_without_it(
    photos: Path, monkeypatch: pytest.MonkeyPatch, forwarded: Counter[str]
) -> None:
    paths = files(photos)
    expected = CNNCodes().fit_transform(paths)
    small = transformer.new_cache(10 * expected[0].nbytes)
    monkeypatch.setattr(transformer, "CACHE", small)
    for _ in range(2):
        np.testing.assert_allclose(CNNCodes(batch_size=3).fit_transform(paths), expected, rtol=1e-4, atol=1e-5)
        assert len(small) == 10 and small.currsize == sum(code.nbytes for code in small.values())
    forwarded.clear()
    CNNCodes().fit_transform(paths[-10:])
    assert not forwarded


def test_the_cache_drops_the_least_recently_used_codes(
    photos: Path, monkeypatch: pytest.MonkeyPatch, forwarded: Counter[str]
) -> None:
    one, two, three, *_ = files(photos)
    monkeypatch.setattr(transformer, "CACHE", transformer.new_cache(2 * 4 * 1024))
    for path in (one, two, one, three):
        CNNCodes().fit_transform([path])
    forwarded.clear()
    CNNCodes().fit_transform([one, three])
    assert not forwarded
    CNNCodes().fit_transform([two])
    assert forwarded == {"fc7": 1}


def test_the_allocator_of_the_process_is_left_alone(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(memory, "keep_freed", lambda: calls.append(None))
    CNNCodes().fit_transform(files(photos)[:2])
    assert not calls


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_codes_that_extract_wrote_are_read_and_only_new_images_computed(
    run: Run, photos: Path, forwarded: Counter[str], precision: str
) -> None:
    paths = files(photos)
    held, photos_held = paths[::9], photos.parent / "held"
    for path in held:
        (photos_held / label(path)).mkdir(parents=True, exist_ok=True)
        path.rename(photos_held / label(path) / path.name)
    assert run("prepare", "--dataset", photos).code == 0
    flags = ("--layer", "fc7", "--pool", "avg", "--precision", precision)
    assert run("extract", "--dataset", "photos", *flags).code == 0
    everything = files(photos) + files(photos_held)
    expected = CNNCodes(precision=precision).fit_transform(everything)
    transformer.CACHE.clear()
    forwarded.clear()
    from_folder = CNNCodes(codes_folder="features/photos")
    np.testing.assert_allclose(from_folder.fit_transform(everything), expected, rtol=1e-4, atol=1e-5)
    assert forwarded == {"fc7": len(held)} == {"fc7": 4}
    CNNCodes(weights="random", codes_folder="features/photos").fit_transform(everything)
    CNNCodes(layer="pool4", codes_folder="features/photos").fit_transform(everything)
    assert forwarded == {"fc7": 4 + 36, "pool4": 36}


# As scikit-learn has it


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_get_params_invariance",
        "check_set_params",
        "check_mixin_order",
    ],
)
def test_scikit_learns_own_check(check: str) -> None:
    """Those that feed no tables of numbers."""
    getattr(estimator_checks, check)("CNNCodes", CNNCodes())


def test_fit_changes_no_parameter_and_a_clone_is_not_fitted(photos: Path) -> None:
    one = CNNCodes(layer="pool4", device="cpu")
    before = one.get_params()
    assert one.fit(files(photos)) is one and one.get_params() == before
    check_is_fitted(one)
    for unfitted in (clone(one), CNNCodes()):
        with pytest.raises(NotFittedError):
            unfitted.transform(files(photos))
        with pytest.raises(NotFittedError):
            unfitted.get_feature_names_out()


def test_a_pickle_does_not_contain_the_network(photos: Path) -> None:
    one = CNNCodes().fit(files(photos))
    stored = pickle.dumps(one)
    assert len(stored) < 5000
    np.testing.assert_array_equal(pickle.loads(stored).transform(files(photos)), one.transform(files(photos)))  # noqa: S301


def test_names_and_tables_of_codes(photos: Path) -> None:
    pandas = pytest.importorskip("pandas")
    paths = pandas.Series(list(map(str, files(photos)[:3])), index=["a", "b", "c"])
    table = CNNCodes().set_output(transform="pandas").fit_transform(paths)
    assert list(table.columns[:2]) == ["cnncodes0", "cnncodes1"] and list(table.index) == ["a", "b", "c"]
    both = make_union(CNNCodes(layer="pool4"), CNNCodes(layer="fc7")).set_output(transform="pandas").fit(paths)
    assert both.transform(paths).shape == (3, len(both.get_feature_names_out()))
    frame = pandas.DataFrame({"file": paths, "size": [1, 2, 3]})
    columns = ColumnTransformer([("codes", CNNCodes(), "file")], remainder="passthrough")
    np.testing.assert_array_equal(columns.fit_transform(frame)[:, :-1], table.to_numpy())
    np.testing.assert_array_equal(CNNCodes().fit_transform(frame[["file"]]), table.to_numpy())


def test_its_example_runs() -> None:
    assert doctest.testmod(transformer) == (0, 9)


@pytest.mark.slow
def test_the_package_imports_torch_only_when_it_is_needed() -> None:
    script = (
        "import sys, pipeline; assert 'torch' not in sys.modules; pipeline.CNNCodes; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 1
    with pytest.raises(ImportError, match="CNNCode"):
        from pipeline import CNNCode  # type: ignore[attr-defined] # noqa: F401


# Mistakes


@pytest.mark.parametrize(
    ("X", "words"),
    [
        ("one.png", "into a list"),
        (Path("one.png"), "into a list"),
        (Image.new("RGB", (4, 4)), "into a list"),
        (np.zeros((8, 9, 3), np.uint8), "into a list"),
        (np.zeros((2, 8, 9, 3)), "float64 of shape (8, 9, 3)"),
        (np.zeros((2, 3, 8, 9), np.uint8), "uint8 of shape (3, 8, 9)"),
        (np.zeros((2, 50), np.uint8), "uint8 of shape (50,)"),
        ([1, 2], "int64 of shape ()"),
        ([np.zeros((0, 9), np.uint8)], "uint8 of shape (0, 9)"),
        (["here.png", "gone.png"], "2 of 2 images cannot be read, the first is 'here.png': unreadable: No such file"),
        ([Image.new("F", (4, 4))], "the first is number 0: floating-point"),
    ],
)
def test_anything_but_a_list_of_images_is_rejected(X: object, words: str) -> None:
    with pytest.raises(errors.PipelineError, match=re.escape(words)):
        CNNCodes().fit_transform(X)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"layer": "fc9"}, "Unknown layer 'fc9' for tinyvgg. Choose from"),
        ({"backbone": "vgg"}, "Unknown backbone 'vgg'"),
        ({"pool": "median"}, "Unknown pooling"),
        ({"weights": "none"}, "Unknown weights"),
        ({"device": "abacus"}, "Device 'abacus' is not here"),
        ({"batch_size": -1}, "batch_size must be 0 or more"),
        ({"precision": "half"}, "Unknown precision 'half'. Choose from: auto, fp32"),
        ({"size": "wide"}, "'wide' is no size"),
        ({"relu": "pre", "layer": "pool4"}, "is no ReLU"),
        ({"threads": 0}, "threads 1 or more"),
        ({"codes_folder": "features/none"}, "no folder 'features/none'"),
    ],
)
def test_fit_rejects_wrong_parameters(photos: Path, parameters: dict[str, object], words: str) -> None:
    estimator = CNNCodes(**parameters)  # type: ignore[arg-type]
    with pytest.raises(errors.PipelineError, match=re.escape(words)):
        estimator.fit(files(photos))


def test_no_images_give_no_codes() -> None:
    assert CNNCodes().fit([]).transform([]).shape == (0, 1024)
