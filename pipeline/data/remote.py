"""Servers and buckets, through fsspec: which files are there, and what their errors mean."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

from pipeline.addresses import last_name, without_secrets
from pipeline.errors import FULL_DISK, PipelineError, first_line

logger = logging.getLogger(__name__)

TRIES = 4
FIRST_WAIT = 0.5
"""Seconds before the second try; each further wait is twice as long."""

TIMEOUT = 60
"""Seconds without data from a server after which a try has failed."""

PACKAGES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""The extra that a scheme needs, where fsspec does not come with all of it."""

VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "mtime", "LastModified", "last_modified", "created")
"""What file systems call that by which a changed file is known, the most certain first."""


@dataclass(frozen=True)
class RemoteFile:
    """A file elsewhere.

    url: what was asked for; path: of the file in the file system, "" where the URL says it; name: relative to the
    folder that was asked for, "" for a file that was asked for itself; size: in bytes, None where nobody said; version:
    what differs where the content does, "" where nobody said.
    """

    url: str
    path: str = ""
    name: str = ""
    size: int | None = None
    version: str = ""

    def __str__(self) -> str:
        """Return the address as it is shown."""
        return without_secrets(self.url).rstrip("/") + f"/{self.name}" * bool(self.name)

    @property
    def host(self) -> str:
        """The server or bucket."""
        return re.split(r"[/?#]", self.url.split("::")[-1].split("://")[-1])[0]

    @property
    def key(self) -> str:
        """The name of its copy on this disk: no two URLs share it, and it is safe on every disk."""
        name = re.sub(r"[^\w.-]", "_", last_name(self.name or self.url))[-80:]
        return f"{hashlib.sha256(f'{self.url} {self.path}'.encode()).hexdigest()[:16]}-{name}"


@dataclass(frozen=True)
class Failure:
    """Why a file was not fetched; is_lasting: whether another try would end alike."""

    reason: str
    is_lasting: bool


def open_place(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a URL and its path there."""
    scheme = url.split(":")[0].lower()
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url, **_options(url))
    except ImportError as error:
        extra = PACKAGES.get(scheme, "remote")
        what = f"the packages for {scheme}:// must be installed: pip install -e '.[{extra}]'"
        if scheme not in (*PACKAGES, "http", "https"):
            what = f"a package must be installed ({first_line(error)})"
        raise PipelineError(f"To read {without_secrets(url)}, {what}.") from error
    except Exception as error:  # file systems raise what their own libraries do
        raise PipelineError(f"{without_secrets(url)} cannot be read ({reason_of(error)}). Check the address.") from None


def _options(url: str) -> dict[str, Any]:
    """Return what fsspec is told about servers: how long to wait for data, and to use proxies as other programs do."""
    schemes = [scheme for scheme in ("http", "https") if f"{scheme}://" in url]
    if not schemes:
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
    client = {"timeout": timeout, "trust_env": True}
    if url.startswith(tuple(schemes)) and "::" not in url:
        return {"client_kwargs": client}
    return {scheme: {"client_kwargs": client} for scheme in schemes}


def list_remote(url: str) -> list[RemoteFile]:
    """Return the files below a folder elsewhere, sorted, or the one file that a URL names; on https always the latter.

    Raises PipelineError if there is nothing, or if it cannot be listed.
    """
    if url.lower().startswith(("http://", "https://")):
        return [RemoteFile(url)]
    system, path = open_place(url)
    system.invalidate_cache()
    outcome = with_retries(lambda: system.find(path, detail=True))
    if isinstance(outcome, Failure):
        raise UnreachableError(url, outcome.reason)
    if not outcome:
        raise UnreachableError(url, "nothing is there")
    root = str(system._strip_protocol(path)).rstrip("/")
    return [
        RemoteFile(url, name, name.removeprefix(root).strip("/"), info.get("size"), _version_of(info))
        for name, info in sorted(outcome.items())
    ]


def _version_of(info: Mapping[str, Any]) -> str:
    return str(next((info[word] for word in VERSIONS if info.get(word)), ""))


class UnreachableError(PipelineError):
    """A place that cannot be read, and the reason."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{without_secrets(url)} cannot be read: {reason}. Check the address, and run again.")
        self.reason = reason


def with_retries(function: Callable[[], Any], tries: int = TRIES) -> Any:
    """Return what a function returns; after errors that may pass it is tried again, and in the end `Failure` tells."""
    for number in range(tries):
        try:
            return function()
        except PipelineError:
            raise
        except Exception as error:  # file systems raise what their own libraries do
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                raise
            failure = Failure(reason_of(error), not may_pass(error))
        if failure.is_lasting or number == tries - 1:
            break
        time.sleep(FIRST_WAIT * 2**number)
    return failure


def may_pass(error: Exception) -> bool:
    """Return whether an error of a file system may pass by itself: a busy server, a broken connection."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return status in (408, 425, 429) or status >= 500
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, ImportError)
    return not isinstance(error, lasting) and type(error).__name__ not in ("NoCredentialsError", "TooManyRedirects")


def reason_of(error: Exception) -> str:
    """Return in a few words what an error of a file system means, without addresses that hold secrets."""
    status = getattr(error, "status", None)
    if type(error).__name__ == "TooManyRedirects":
        return "the server redirects in a circle"
    if isinstance(error, FileNotFoundError) or status == 404:
        return "it does not exist (404)"
    if type(error).__name__ == "NoCredentialsError":
        return """there are no credentials for it (of a public bucket set FSSPEC_S3='{"anon": true}')"""
    if isinstance(error, PermissionError) or status in (401, 403):
        return f"access is denied ({status or 403})"
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT} s"
    if isinstance(status, int) and status:
        return f"the server answers {status} {getattr(error, 'message', '')}".strip()
    text = re.sub(r"[A-Za-z][\w+.-]*://\S+", lambda match: without_secrets(match[0]), first_line(error)).rstrip(". ")
    return text or type(error).__name__
