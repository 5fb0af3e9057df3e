"""Addresses of images: on this disk, in archives, on servers; what they are called, and shown without secrets."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote, unquote

TABLE_SUFFIXES = (".csv", ".tsv")
ROWS_SUFFIX = ".parquet"
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_URL = re.compile(r"[a-z][a-z0-9+.-]+(://|::)", re.IGNORECASE)
"""How a URL begins, or a chain of them as fsspec has it; a single letter is a drive of Windows."""

_PARTS = re.compile(r"([a-z][a-z0-9+.-]+://)([^/?#]*@)?([^?#]*)([?#].*)?", re.IGNORECASE | re.DOTALL)
"""The parts of a URL: the scheme, who logs in, the place, and what follows."""


def is_url(text: str) -> bool:
    """Return whether a text is a URL, as https://host/photos.zip or s3://bucket/photos is."""
    return _URL.match(text) is not None


def is_on_this_disk(url: str) -> bool:
    """Return whether a URL, or the last of a chain, leads to this disk, as file:///home/me/1.jpg does."""
    scheme, separator, _ = url.rpartition("::")[2].partition("://")
    return not separator or scheme.lower() in ("file", "local")


def is_archive(name: str) -> bool:
    """Return whether a file's name is that of a zip or tar file."""
    return _without_query(name).lower().endswith(ARCHIVE_SUFFIXES)


def is_table(name: str) -> bool:
    """Return whether a file's name is that of a CSV file."""
    return _without_query(name).lower().endswith(TABLE_SUFFIXES)


def split_archive(source: str) -> tuple[str, str]:
    """Return the archive that a path or URL leads into, and the path within; ("", "") where there is none.

    photos.zip/list.csv leads to list.csv in photos.zip. In chains like zip://list.csv::s3://bucket/photos.zip fsspec
    opens the archive.
    """
    if is_url(source) and "::" in source:
        return "", ""
    pattern = "|".join(re.escape(suffix) for suffix in ARCHIVE_SUFFIXES)
    match = re.fullmatch(rf"(.*?[^/](?:{pattern}))(?:/+(.*?))?/*([?#].*)?", source, re.IGNORECASE | re.DOTALL)
    return (match[1] + (match[3] or ""), match[2] or "") if match else ("", "")


def without_secrets(text: str) -> str:
    """Return an address without user name and password; of what follows ? or #, a digest stands for the text.

    Such queries hold signatures and tokens; their digest tells two addresses apart. Any other text is returned as it
    is.
    """
    return "::".join(map(_shown, text.split("::"))) if is_url(text) else text


def _shown(url: str) -> str:
    if (match := _PARTS.fullmatch(url)) is None:
        return url
    scheme, _, place, query = match.groups()
    return f"{scheme}{place}" + (f"?…{hashlib.sha256(query.encode()).hexdigest()[:8]}" if query else "")


def last_name(url: str) -> str:
    """Return the last part of a URL, as text: what is after the last slash."""
    path = _without_query(url).rstrip("/")
    return unquote(path.split("://")[-1].rsplit("/", 1)[-1])


def folder_of(url: str) -> str:
    """Return the URL of the folder that a URL's file lies in, without a slash at its end."""
    first, *rest = url.split("::")
    return "::".join([_without_query(first).rsplit("/", 1)[0], *rest])


def child_of(folder: str, path: str) -> str:
    """Return the URL of a file in a folder that `folder_of` gave."""
    first, *rest = folder.split("::")
    return "::".join([f"{first}/{quote(path) if first.lower().startswith('http') else path}", *rest])


def stem(name: str) -> str:
    """Return a file's name without the suffix of a CSV file, a Parquet file or an archive."""
    suffixes = [suffix for suffix in (*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES, ROWS_SUFFIX) if name.lower().endswith(suffix)]
    return name[: -max(map(len, suffixes))] if suffixes else name


def _without_query(name: str) -> str:
    """Return the first part of a URL without what follows ? or #; names of files on disk may hold both."""
    return re.split(r"[?#]|::", name, maxsplit=1)[0] if is_url(name) else name
