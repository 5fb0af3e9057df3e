"""The spec of codes: as JSON and back, and how differences are named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import make_spec

from pipeline.codes.spec import CodesSpec, spec_differences


def test_a_spec_survives_json() -> None:
    spec = make_spec(views="ten", crop_width=48, relu="pre")
    data = json.loads(json.dumps(spec.to_dict()))
    assert data == spec.to_dict() == json.loads(spec.to_json())
    assert data["transform"]["mean"] == [0.485, 0.456, 0.406]
    assert CodesSpec.from_dict(data) == spec


@pytest.mark.parametrize(
    "changes",
    [
        {"transform": {}},
        {"transform": None},
        {"layer": 7},
        {"other": 1},
        {"transform": make_spec().to_dict()["transform"] | {"crop": "wide"}},
        {"transform": make_spec().to_dict()["transform"] | {"crop": "64"}},
        {"transform": make_spec().to_dict()["transform"] | {"other": 1}},
    ],
)
def test_other_names_and_types_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a spec of codes"):
        CodesSpec.from_dict(make_spec().to_dict() | changes)


@pytest.mark.parametrize("data", [None, [], "spec", {}, {"layer": "fc7"}])
def test_what_is_no_spec_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="not a spec of codes"):
        CodesSpec.from_dict(data)


def test_differences_are_named_inside_the_transform_too() -> None:
    spec = make_spec(resize=72)
    assert spec_differences(spec, spec.to_dict()) == []
    assert spec_differences(spec, make_spec(pool="max").to_dict()) == [
        "transform.resize is 72, not 64",
        "pool is 'none', not 'max'",
    ]
    assert spec_differences(spec, {"transform.resize": 64}) == ["transform.resize is 72, not 64"]
