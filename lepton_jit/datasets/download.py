"""Published files, fetched once into the user's cache: checked by SHA-256, never used half."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lepton_jit.common.writing import whole_file, work_folder
from lepton_jit.errors import LeptonError

__all__ = ["DownloadError", "download", "is_complete"]

CONNECT_SECONDS = 4.0
READ_SECONDS = 20.0


class DownloadError(LeptonError):
    """A published file could not be fetched; the message says from where and why."""


def is_complete(directory: Path, checksums: Mapping[str, str]) -> bool:
    """Tell whether every file of `checksums` (name: SHA-256 in hexadecimal) stands in `directory`, undamaged."""
    return all(_checksum(directory / name) == expected for name, expected in checksums.items())


def download(directory: Path, checksums: Mapping[str, str], mirrors: Sequence[str]) -> None:
    """Fetch what `directory` lacks from the first of `mirrors` that delivers everything.

    Without a network this fails within seconds. Raises DownloadError with each mirror's reason.
    """
    reasons = []
    for mirror in mirrors:
        try:
            _fetch_all(directory, checksums, mirror)
        except (OSError, ValueError) as error:
            reasons.append(f"{urlsplit(mirror).netloc}: {_in_one_line(error)}")
        else:
            return
    raise DownloadError("; ".join(reasons))


def _fetch_all(directory: Path, checksums: Mapping[str, str], mirror: str) -> None:
    # 0.06 s of imports, and most calls find the files in the cache.
    import pooch

    directory.mkdir(parents=True, exist_ok=True)
    # pooch's own downloader misses its own protocol by its parameters' names.
    downloader: Any = pooch.HTTPDownloader(timeout=(CONNECT_SECONDS, READ_SECONDS))
    missing = [name for name, expected in checksums.items() if _checksum(directory / name) != expected]
    with work_folder(directory) as work:
        files = pooch.create(path=work, base_url=mirror, registry={n: f"sha256:{c}" for n, c in checksums.items()})
        for name in missing[:1]:
            _require_answer(files.get_url(name))
        for name in missing:
            files.fetch(name, downloader=downloader)
            with (work / name).open("rb") as fetched, whole_file(directory / name) as file:
                shutil.copyfileobj(fetched, file)


def _require_answer(url: str) -> None:
    """Raise OSError unless the server answers soon: name resolution has no timeout of its own."""
    import requests

    outcome: list[OSError | None] = []

    def ask() -> None:
        try:
            requests.head(url, timeout=CONNECT_SECONDS).raise_for_status()
        except requests.ConnectionError as error:
            outcome.append(ConnectionError(str(error)))
        except OSError as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=ask, name="lepton-jit-download", daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS + 1.0)
    if not outcome:
        raise TimeoutError(f"no answer within {CONNECT_SECONDS + 1.0:.0f} s")
    if outcome[0] is not None:
        raise outcome[0]


def _checksum(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _in_one_line(error: Exception) -> str:
    # A failed connection quotes the whole stack of libraries below it.
    text = "no connection" if isinstance(error, ConnectionError) else " ".join(str(error).split())
    return text if len(text) <= 160 else f"{text[:157]}..."
