"""Whole or not at all, and one winner."""

import os
import threading
from pathlib import Path

import pytest

from cluster.artifacts.files import compare_and_swap, create, sha256_file, write_atomic


def test_of_many_concurrent_creates_one_wins(tmp_path: Path) -> None:
    path, winners = tmp_path / "manifest.json", []
    barrier = threading.Barrier(32)

    def race(number: int) -> None:
        barrier.wait()
        if create(path, str(number).encode()):
            winners.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert path.read_text() == str(winners[0])
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_concurrent_swaps_lose_no_update(tmp_path: Path) -> None:
    path = tmp_path / "counter"

    def add_ten() -> None:
        done = 0
        while done < 10:
            current = path.read_bytes() if path.exists() else None
            done += compare_and_swap(path, current, str(int(current or 0) + 1).encode())

    threads = [threading.Thread(target=add_ten) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() == "80"


def test_a_failed_write_leaves_the_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
