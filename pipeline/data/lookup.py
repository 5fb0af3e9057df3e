"""Find the files that the cells of a CSV file name, as people write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.data.listing import clean_name
from pipeline.paths import expand_home


class FileFinder:
    """Finds files by the names that people write; it remembers what lies in the folders that it looked into.

    root: where relative paths start; known: the files of some cells, which were fetched from elsewhere.
    """

    def __init__(self, root: Path, known: Mapping[str, Path] | None = None) -> None:
        self.root, self.known = root, known or {}
        self._names: dict[Path, Mapping[str, Path]] = {}

    def find(self, cell: str) -> Path:
        """Return the file that a cell names: the first spelling of it that exists, or else the cell as it is.

        Spellings are the cell itself, without spaces around it, from the home folder if it starts with `~`, with
        slashes instead of backslashes, and with names that `clean_name` reads alike: composed or not, or in the bytes
        of Windows-1252 instead of UTF-8.
        """
        if cell in self.known:
            return self.known[cell]
        return next((path for path in self._spellings(cell) if exists(path)), self.root / cell.strip())

    def _spellings(self, cell: str) -> Iterator[Path]:
        yield self.root / cell
        for text in dict.fromkeys((cell.strip(), cell.strip().replace("\\", "/"))):
            yield self.root / text
            if text.startswith("~"):
                yield expand_home(text)
            if not text.isascii():
                yield self._find_parts(Path(text))

    def _find_parts(self, path: Path) -> Path:
        """Return a path whose parts are replaced, where they do not exist, by names that are read alike."""
        found = self.root / path.anchor
        for part in path.relative_to(path.anchor).parts:
            exact = found / part
            found = exact if exists(exact) else self._names_in(found).get(clean_name(part), exact)
        return found

    def _names_in(self, folder: Path) -> Mapping[str, Path]:
        if folder not in self._names:
            paths = sorted(folder.iterdir(), reverse=True) if exists(folder) and folder.is_dir() else []
            self._names[folder] = {clean_name(path.name): path for path in paths}
        return self._names[folder]


def exists(path: Path) -> bool:
    """Return whether a path exists; False of what cannot be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, for one thing
        return False
