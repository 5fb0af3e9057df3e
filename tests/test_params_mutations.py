"""Random changes to params.yaml: never a traceback, and never exit code 0 with a value that is not in effect."""

from __future__ import annotations

import csv
import random
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Outcome, write_photos

from pipeline import params
from pipeline.config import COMMANDS, GRIDS, Prepare, Project

Run = Callable[..., Outcome]
Lines = list[str]

FILE = """\
dataset: photos
models: [svm, softmax]
prepare:
  test: 0.25
  seed: 0
  on_bad: skip
extract:
  layer: fc7
  compile: no
classify:
  rule: best
  nested: false
svm:
  l2: {C: [1, 1e+1]}
"""

VALUES = (
    *("", "~", "yes", "no", "true", "0", "1", "2", "-1", "0.5", "3.0", "1e-3", "010", "0x1F", "0o7", "1_0", "1:30"),
    *(".nan", ".inf", "-.inf", "1e400", "9" * 30, "9" * 5000, f"0x{'f' * 5000}", "2024-13-45", "2024-01-01", "auto"),
    *("!!int x", "!!bool x", "!!float x", "!!binary aGk=", "!!set {a, b}", "!!python/object:os.system x", "!x y", "="),
    *("<<", '"\\0"', '"\\ud800"', '"', "'it''s'", '""', "[", "[]", "[1, 2]", "[svm, softmax]", "[[1]]", "[null]", "{}"),
    *("{a: b}", "{a: 1, a: 2}", "&a [*a]", "*nowhere", "&a x", "| text", "@x", "`x", "%x", "? x", "- 1", "x: y"),
    *("# none", "a\tb", "café", "☃", "\u202e", "cafe\u0301", "red", "photos", "svm", "fc7", "error", "a" * 3000),
    *("{l2: {C: [0.1]}}", "{l2: {C: []}}", "{l2: {c: [1]}}", "{l2: {C: [a]}}", "{l2: {C: [-1]}}", "{l2: {C: [.nan]}}"),
)
GOOD = ("0", "1", "0.25", "yes", "no", "true", "1_0", "010", "2e-1", "best", "error", "fc7", "[fc7, pool3]", "~", "")
GARBAGE = ("", "---", "...", "- a", "key", "a: b: c", "\tfolds: 3", "# ok", "? [a, b]", "<<: *b", "%YAML 1.2", "}")


def change_value(lines: Lines, place: int, rng: random.Random) -> None:
    key = lines[place].split(":")[0]
    lines[place] = f"{key}: {rng.choice(rng.choice((GOOD, GOOD, VALUES)))}"


def change_key(lines: Lines, place: int, rng: random.Random) -> None:
    line, end = lines[place], max(lines[place].find(":"), 1)
    spot, letter = rng.randrange(end), rng.choice("xX_- \té\u0435")
    lines[place] = rng.choice(
        (
            line[:spot] + letter + line[spot:],
            line[:spot] + line[spot + 1 :],
            line[:end].upper() + line[end:],
            line[:end].replace("_", "-") + line[end:],
            line[:end] + line[end + 1 :],
        )
    )


def repeat(lines: Lines, place: int, rng: random.Random) -> None:
    line = lines[place].replace("_", "-") if rng.random() < 0.3 else lines[place]
    lines.insert(rng.choice((place + 1, rng.randrange(len(lines) + 1))), line)


def indent(lines: Lines, place: int, rng: random.Random) -> None:
    lines[place] = rng.choice(("", " ", "  ", "    ", "\t", "- ")) + lines[place].lstrip()


def move(lines: Lines, place: int, rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines)), lines.pop(place))


def insert(lines: Lines, place: int, rng: random.Random) -> None:
    lines.insert(place, rng.choice(GARBAGE))


def share(lines: Lines, place: int, rng: random.Random) -> None:
    """Give a section an anchor, and its content to another section."""
    if lines[place].endswith(":"):
        lines[place] += " &shared"
        name = rng.choice((*COMMANDS, *GRIDS))
        lines.extend(rng.choice(([f"{name}: *shared"], [f"{name}:", "  <<: *shared", "  seed: 5"])))


def remove(lines: Lines, place: int, rng: random.Random) -> None:
    del lines[place]


CHANGES = (*[change_value] * 8, *[change_key] * 3, repeat, repeat, indent, move, insert, share, share, remove)


def encode(text: str, rng: random.Random) -> bytes:
    """Return the bytes of a text, more often than not in UTF-8."""
    if rng.random() < 0.8:
        return text.encode()
    data = rng.choice((text, f"# café\n{text}", unicodedata.normalize("NFD", text))).encode(
        rng.choice(("utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252")), "replace"
    )
    place = rng.randrange(len(data))
    damaged = (data[:place], data[:place] + rng.randbytes(3) + data[place:], rng.randbytes(200), b"{a: " * 3000, b"")
    return rng.choice(
        (data, data, data.replace(b"\n", b"\r\n"), data.replace(b"\n", b"\r"), data + b"\n---\n" + data, *damaged)
    )


def mutate(rng: random.Random) -> bytes:
    lines = FILE.splitlines()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(CHANGES)(lines, rng.randrange(len(lines)), rng)
    return encode("\n".join(lines) + "\n", rng)


# What the file says, read by another library than the program's, which keeps keys that occur twice


def pairs(node: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
    """Yield the keys and values of a mapping; those that it takes over (`<<`) only if it does not have them itself."""
    if isinstance(node, yaml.ScalarNode) and node.value in ("", "~", "null"):
        return
    assert isinstance(node, yaml.MappingNode)
    own = [(key.value.replace("-", "_"), value) for key, value in node.value if key.value != "<<"]
    yield from own
    for key, value in node.value:
        if key.value == "<<":
            yield from ((name, merged) for name, merged in pairs(value) if name not in dict(own))


def same(value: Any, node: yaml.Node) -> bool:
    """Whether a value is what a node says."""
    if isinstance(node, yaml.MappingNode):
        said = list(pairs(node))
        return len(said) == len(value) and all(same(value[name], inner) for name, inner in said)
    if isinstance(node, yaml.SequenceNode):
        return len(node.value) == len(value) and all(map(same, value, node.value))
    text = node.value
    if isinstance(value, list | tuple):
        return len(value) == 1 and same(value[0], node)
    if isinstance(value, bool):
        return (text.lower() in ("yes", "true", "on", "1")) == value
    if isinstance(value, int | float):
        return float(int(text, 0) if text.startswith(("0x", "0o")) else text.replace("_", "")) == value
    return text == str(value) or (text.lower() in ("", "~", "null") and value is None)


def all_in_effect(text: str) -> None:
    """Every key of the file occurs once, and its value is the one that the commands get."""
    root = yaml.compose(text, yaml.SafeLoader)
    said = [] if root is None else list(pairs(root))
    assert len({name for name, _ in said}) == len(said), text
    project = params.effective()
    for name, node in said:
        if name in params.names_of(Project):
            assert same(project[name], node), (name, text)
        elif name in GRIDS:
            assert same(params.grid_of(name), node), (name, text)
        else:
            settings, _ = params.load(COMMANDS[name])
            keys = [key for key, _ in pairs(node)]
            assert len(set(keys)) == len(keys), (name, text)
            for key, value in pairs(node):
                default = COMMANDS[name].__pydantic_fields__[key].default  # type: ignore[attr-defined]
                empty = isinstance(value, yaml.ScalarNode) and value.style is None and value.value in ("", "~", "null")
                found = getattr(settings, key)
                assert found == default if empty else same(found, value), (name, key, text)


def obeyed() -> None:
    """`prepare` wrote all images, and as many of each class for testing as params.yaml said."""
    settings, _ = params.load(Prepare)
    with Path("out/manifest.csv").open(encoding="utf-8", newline="") as file:
        splits = [row["split"] for row in csv.DictReader(file)]
    assert len(splits) == 12
    assert splits.count("test") == (3 * min(max(round(settings.test * 4), 1), 3) if settings.test else 0)


@pytest.mark.slow
def test_no_change_of_params_passes_unnoticed_or_ends_in_a_traceback(run: Run, project: Path) -> None:
    write_photos(project / "photos", {"red": 4, "green": 4, "blue": 4})
    codes = []
    for seed in range(1000):
        rng = random.Random(seed)
        content, prepares = mutate(rng), seed % 10 == 0
        Path("params.yaml").write_bytes(content)
        outcome = run("prepare", "--dataset", "photos", "--out", "out") if prepares else run("cache")
        assert outcome.code in (0, 2), (seed, outcome)
        if outcome.code == 2:
            lines = outcome.err.strip().splitlines()
            assert lines[-1].startswith("Error: ") and lines[-1].endswith((".", ".)")), (seed, outcome)
        else:
            all_in_effect(content.decode("utf-8-sig"))
            if prepares:
                obeyed()
        codes.append(outcome.code)
    assert codes.count(0) > 120 and codes.count(2) > 500
