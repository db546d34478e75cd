"""The object cache: what was put comes back whole, or not at all."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from lepton_jit.environment import Environment
from lepton_jit.runtime.cache import ObjectCache, open_cache

BLOBS = {"program": bytes(range(256)) * 4, "manifest": b"{}", "empty": b""}


@pytest.fixture
def cache(tmp_path: Path) -> ObjectCache:
    return ObjectCache(tmp_path / "cache")


def entry(cache: ObjectCache) -> Path:
    (path,) = cache.directory.glob("*.entry")
    return path


def test_what_was_put_comes_back(cache: ObjectCache) -> None:
    assert cache.get("key") is None
    assert cache.put("key", BLOBS)
    assert cache.get("key") == BLOBS
    assert cache.get("other") is None


def test_a_second_put_replaces(cache: ObjectCache) -> None:
    cache.put("key", BLOBS)
    cache.put("key", {"new": b"1"})
    assert cache.get("key") == {"new": b"1"}


def test_files_are_private(cache: ObjectCache) -> None:
    cache.put("key", BLOBS)
    assert cache.directory.stat().st_mode & 0o777 == 0o700
    assert entry(cache).stat().st_mode & 0o777 == 0o600


def test_any_damage_is_a_miss_and_is_replaced(cache: ObjectCache) -> None:
    rng = random.Random(0)
    cache.put("key", BLOBS)
    good = entry(cache).read_bytes()
    for _ in range(200):
        damaged = bytearray(good)
        if rng.random() < 0.3:
            damaged = damaged[: rng.randrange(len(good))]
        else:
            damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        entry(cache).write_bytes(damaged)
        assert cache.get("key") is None
    cache.put("key", BLOBS)
    assert cache.get("key") == BLOBS


def test_an_entry_under_a_wrong_name_is_a_miss(cache: ObjectCache) -> None:
    cache.put("key", BLOBS)
    first = entry(cache)
    cache.put("other", {})
    (second,) = set(cache.directory.glob("*.entry")) - {first}
    os.replace(first, second)
    assert cache.get("other") is None


def test_an_entry_that_others_can_write_is_never_run(cache: ObjectCache) -> None:
    cache.put("key", BLOBS)
    entry(cache).chmod(0o666)
    assert cache.get("key") is None


def test_a_directory_that_others_can_write_is_not_used(cache: ObjectCache) -> None:
    cache.directory.mkdir(parents=True)
    cache.directory.chmod(0o777)
    assert not cache.put("key", BLOBS)
    assert list(cache.directory.iterdir()) == []


def test_a_symbolic_link_is_not_followed(cache: ObjectCache, tmp_path: Path) -> None:
    cache.put("key", BLOBS)
    path = entry(cache)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cache.get("key") is None


def test_a_path_that_cannot_be_a_directory_is_a_miss(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ObjectCache(tmp_path / "file")
    assert not cache.put("key", BLOBS)
    assert cache.get("key") is None


def test_the_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, limit=3500)
    for name in "abc":
        cache.put(name, {"blob": bytes(1000)})
        os.utime(cache._path(name), (1000 + ord(name), 1000 + ord(name)))
    assert cache.get("a") is not None  # now the most recently used
    cache.put("d", {"blob": bytes(1000)})
    assert [cache.get(name) is not None for name in "abcd"] == [True, False, True, True]


def test_left_over_temporary_files_are_removed(cache: ObjectCache) -> None:
    cache.put("key", BLOBS)
    left = cache.directory / ".lepton-0123456789abcdef.tmp"
    left.write_bytes(b"half")
    cache.put("key", BLOBS)
    assert not left.exists()


def test_many_writers_and_readers_never_see_a_part(cache: ObjectCache) -> None:
    values = [{"blob": bytes([k]) * 10_000} for k in range(4)]
    wrong: list[object] = []

    def work(value: dict[str, bytes]) -> None:
        for _ in range(20):
            cache.put("key", value)
            found = cache.get("key")
            if found not in values:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_environment_chooses_or_disables_the_cache(tmp_path: Path) -> None:
    chosen = open_cache(Environment(cache=tmp_path))
    assert chosen is not None
    assert chosen.directory == tmp_path / "objects"
    assert open_cache(Environment(cache=None)) is None
