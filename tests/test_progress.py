"""Progress: a bar on a terminal, a line every 30 seconds elsewhere, nothing with --quiet."""

from __future__ import annotations

import io
import logging
import sys
import time

import pytest

from pipeline import progress
from pipeline.command_line import set_up_logging
from pipeline.errors import counted
from pipeline.progress import ProgressBar, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written to standard error, which is no terminal, with the time between lines made short."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    set_up_logging()
    return written


def test_a_single_item_that_takes_long_is_no_silence(stderr: io.StringIO) -> None:
    with ProgressBar("comparing", 3, "command") as bar:
        bar.update()
        time.sleep(0.2)
    first = stderr.getvalue().splitlines()[0]
    assert first.startswith("comparing: 1 of 3 commands, 0 s") and first.count("left") <= 1
    assert len(stderr.getvalue().splitlines()) >= 2
    so_far = stderr.getvalue()
    time.sleep(0.1)
    assert stderr.getvalue() == so_far, "nothing more after the end"


def test_short_work_and_work_within_work_are_not_shown(stderr: io.StringIO) -> None:
    assert list(track([1, 2], "checking", 2)) == [1, 2] and stderr.getvalue() == ""
    for _ in track([1], "outer", None, "class"):
        for _ in track([1], "inner", 1):
            time.sleep(0.12)
    assert "outer: 0 classes" in stderr.getvalue() and "inner" not in stderr.getvalue()
    assert ProgressBar.shown is None


def test_quiet_shows_nothing(stderr: io.StringIO) -> None:
    set_up_logging(quiet=True)
    with ProgressBar("checking", 1):
        time.sleep(0.12)
    assert stderr.getvalue() == "" and logging.getLogger("pipeline").level == logging.ERROR


def test_a_terminal_has_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "REFRESH", 0.02)
    set_up_logging()
    with ProgressBar("checking", 4) as bar:
        bar.update()
        time.sleep(0.1)
    assert "checking:  25%" in terminal.getvalue() and "\n" not in terminal.getvalue()


def test_an_error_ends_it(stderr: io.StringIO) -> None:
    with pytest.raises(KeyError), ProgressBar("checking", 1):
        raise KeyError
    assert ProgressBar.shown is None


def test_lines_tell_the_time_that_is_left() -> None:
    bar = ProgressBar("extracting", 4000)
    bar.done, bar.start = 1000, time.monotonic() - 200
    assert bar.line() == "extracting: 1,000 of 4,000 images, 3 min, about 10 min left"
    bar.done = 4000
    assert bar.line() == "extracting: 4,000 of 4,000 images, 3 min"


def test_grammar() -> None:
    assert [counted(1, "image"), counted(0, "image"), counted(2, "class")] == ["1 image", "0 images", "2 classes"]


def test_notes_are_shown_unless_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet, expected in ((False, "a note\n"), (True, "")):
        set_up_logging(quiet=quiet)
        logging.getLogger("pipeline.advise").info("a note")
        assert capsys.readouterr().err == expected
