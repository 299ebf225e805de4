"""The index: made once, mapped afterwards, and made again where the file or the index changed."""

import fcntl
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.errors import DataError
from data_pipeline.videos import index as index_module
from data_pipeline.videos import storage
from data_pipeline.videos.index import Index, open_index
from data_pipeline.videos.lists import list_paths
from data_pipeline.videos.split_keys import path_hash
from tests.helpers.data_videos import write_annotations

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "caches"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The annotation files that were read, in order."""
    opened: list[str] = []
    real = storage.open_stream

    def recorded(location: str) -> object:
        opened.append(location)
        return real(location)

    monkeypatch.setattr(storage, "open_stream", recorded)
    return opened


def names(count: int) -> list[str]:
    return [f"videos/{index // 100:04d}/clip_{index:06d}.mp4" for index in range(count)]


def write(folder: Path, listed: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_annotations(folder, listed)


def index_of(file: Path) -> Path:
    return file.with_name(file.name + ".index.arrow")


def hashes_of(index: Index) -> list[int]:
    return [int(value) for piece in index.hashes for value in piece]


def test_the_index_holds_each_path_and_its_hash_in_order(tmp_path: Path) -> None:
    listed = [*names(3), "./videos//0000/clip_000000.mp4", "é 🚗.mp4", "/full/path.mp4"]
    index = open_index(str(write(tmp_path / "data", listed)))
    assert len(index) == 6
    assert index.paths.to_pylist() == listed
    assert hashes_of(index) == [int.from_bytes(path_hash(name), "little") for name in listed]
    assert all(piece.dtype == np.uint64 for piece in index.hashes)
    # The same video, spelled otherwise.
    assert hashes_of(index)[3] == hashes_of(index)[0]
    assert len(set(hashes_of(index))) == 5


def test_many_entries_are_written_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_index(str(write(tmp_path / "a", names(1000))))
    for size in (1, 7, 500, 1000):
        monkeypatch.setattr(index_module, "BATCH_ENTRIES", size)
        index = open_index(str(write(tmp_path / str(size), names(1000))))
        assert index.paths.to_pylist() == names(1000)
        assert hashes_of(index) == hashes_of(whole)
        assert index.fingerprint == whole.fingerprint


def test_the_file_is_read_once_and_then_mapped(tmp_path: Path, builds: list[str]) -> None:
    file = write(tmp_path / "data", names(20_000))
    first = open_index(str(file))
    before = pa.total_allocated_bytes()
    second = open_index(str(file))
    assert builds == [str(file)]
    assert index_of(file).stat().st_size > 700_000
    assert pa.total_allocated_bytes() - before < 10_000
    assert not any(piece.flags.owndata for piece in second.hashes)
    assert second.paths.equals(first.paths)
    assert second.fingerprint == first.fingerprint
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "annotations.json",
        "annotations.json.index.arrow",
    ]


def test_no_more_than_a_piece_of_the_hashes_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "BATCH_ENTRIES", 500)
    file = write(tmp_path / "data", names(20_000))
    index = open_index(str(file))
    before, most = pa.total_allocated_bytes(), index_of(file).stat().st_size / 10
    pieces = 0
    for piece in index.hashes:
        assert pa.total_allocated_bytes() - before < most
        pieces += len(piece) == 500
    del piece
    assert pieces == 40
    assert pa.total_allocated_bytes() - before < 10_000


def test_an_index_that_is_replaced_while_it_is_opened_is_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is opened twice, for the paths and for the hashes."""
    file, other = (write(tmp_path / name, names(count)) for name, count in (("a", 5), ("b", 8)))
    for each in (file, other):
        open_index(str(each))
    stored, places = index_module._StoredHashes, [index_of(other)]

    def replaced(place: Path) -> index_module._StoredHashes:
        return stored(places.pop() if places else place)

    monkeypatch.setattr(index_module, "_StoredHashes", replaced)
    index = open_index(str(file))
    assert not places
    assert len(hashes_of(index)) == len(index) == 5


def test_a_changed_file_is_read_again(tmp_path: Path, builds: list[str]) -> None:
    file = write(tmp_path / "data", names(10))
    before = open_index(str(file))
    # As long as before, and another time.
    write(file.parent, [name.replace("clip", "CLIP") for name in names(10)])
    os.utime(file, ns=(0, 12345))
    after = open_index(str(file))
    assert after.paths[0].as_py() == "videos/0000/CLIP_000000.mp4"
    assert after.fingerprint != before.fingerprint
    # What is mapped stays as it was.
    assert before.paths.to_pylist() == names(10)
    assert len(builds) == 2


def test_the_fingerprint_is_of_the_paths_and_not_of_the_file(tmp_path: Path) -> None:
    one = open_index(str(write(tmp_path / "one", names(10))))
    file = tmp_path / "two" / "annotations.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"list": [{"path": name} for name in names(10)]}, indent=2))
    assert open_index(str(file)).fingerprint == one.fingerprint
    for other in (names(9), names(10)[::-1], ["".join(names(10))]):
        assert open_index(str(write(tmp_path / "three", other))).fingerprint != one.fingerprint


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without_footer(content: bytes) -> bytes:
    return content[:-300] + bytes(300)


def without_middle(content: bytes) -> bytes:
    third = len(content) // 3
    return content[:third] + bytes(third) + content[2 * third :]


def positions_that_point_anywhere(content: bytes) -> bytes:
    first = content.index(np.arange(0, 28 * 4, 28, dtype=np.int64).tobytes())
    return content[:first] + np.random.default_rng(0).bytes(8000) + content[first + 8000 :]


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        without_footer,
        without_middle,
        positions_that_point_anywhere,
        lambda content: content[:-1],
        lambda _: b"",
        lambda _: b"not an index",
    ],
)
def test_a_damaged_index_is_made_anew(
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
    builds: list[str],
) -> None:
    file = write(tmp_path / "data", [f"videos/clip_{index:012d}.mp4" for index in range(2000)])
    expected = open_index(str(file)).paths.to_pylist()
    content = index_of(file).read_bytes()
    index_of(file).write_bytes(damage(content))
    with caplog.at_level(logging.WARNING):
        assert open_index(str(file)).paths.to_pylist() == expected
    assert f"the index {index_of(file)} is damaged and is made anew" in caplog.text
    assert index_of(file).read_bytes() == content
    assert len(builds) == 2


def test_an_index_of_another_format_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builds: list[str]
) -> None:
    file = write(tmp_path / "data", names(10))
    open_index(str(file))
    monkeypatch.setattr(index_module, "FORMAT", "another")
    open_index(str(file))
    open_index(str(file))
    assert len(builds) == 2


def test_where_nothing_can_be_written_the_index_goes_to_the_cache(
    tmp_path: Path, caches: Path, builds: list[str]
) -> None:
    file = write(tmp_path / "data", names(10))
    # Stands in for a folder that is read-only, which is none to the superuser.
    blocked = Path(f"{index_of(file)}.partial")
    blocked.mkdir()
    for _ in range(2):
        assert open_index(str(file)).paths.to_pylist() == names(10)
    assert len(builds) == 1
    assert not index_of(file).exists()
    [index] = (caches / "taehv" / "indexes").iterdir()
    assert index.suffix == ".arrow"

    caches.rename(tmp_path / "elsewhere")
    caches.touch()
    with pytest.raises(DataError, match=r"can be written nowhere .* set XDG_CACHE_HOME"):
        open_index(str(file))


def test_a_file_that_is_wrong_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "annotations.json"
    file.write_text('{"list": [{"path": "a"}, {"video": "b"}]}')
    with pytest.raises(DataError, match=f"entry 1 of 'list' in the annotation file {file}"):
        open_index(str(file))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_missing_files_name_the_key_to_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json does not exist; set data\.annotations"):
        open_index(str(tmp_path / "absent.json"))
    with pytest.raises(DataError, match=r"holds no video, that is no file that ends in \.mp4"):
        open_index(str(tmp_path))


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "data", names(10))

    def slow(location: str) -> Iterator[str]:
        yield from list_paths(location)
        write(file.parent, names(11))

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "list_paths", slow)
        with pytest.raises(DataError, match="changed while it was read; start again"):
            open_index(str(file))
    assert len(open_index(str(file))) == 11


def test_a_long_read_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "data", names(100))
    monkeypatch.setattr(index_module, "BATCH_ENTRIES", 10)
    clock = iter(np.arange(0.0, 1000.0, 2.5))
    monkeypatch.setattr("data_pipeline.videos.index.time.monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        open_index(str(file))
    said = [message for message in caplog.messages if message.startswith("reading")]
    # 10 videos per 2.5 s, told every 10 s.
    assert said == [
        f"reading {file}: 40 videos, 4 a second",
        f"reading {file}: 80 videos, 4 a second",
    ]
    assert caplog.messages[-1] == f"100 videos indexed in 27.5 s; the index is {index_of(file)}"


OPEN = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
from data_pipeline.videos.index import open_index
print(len(open_index(sys.argv[1])))
"""


def start(file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, str(file)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_processes_that_start_together_one_reads_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "data", names(1000))
    partial = Path(f"{index_of(file)}.partial")
    # As a killed process left it, longer than the whole index; held until all others wait.
    with partial.open("wb") as held:
        held.write(b"half an index" * 100_000)
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        others = [start(file) for _ in range(3)]
        waiting = []
        for process in others:
            assert process.stderr is not None
            waiting.append(process.stderr.readline())
    told = "".join(waiting)
    for process in others:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, "1000\n")
        told += errors
    assert told.count("waiting for another process") >= 3
    assert told.count("1000 videos indexed") == 1
    assert not partial.exists()


def test_a_reader_that_is_killed_leaves_the_work_to_the_next(tmp_path: Path) -> None:
    file = tmp_path / "data" / "annotations.json"
    file.parent.mkdir()
    os.mkfifo(file)
    process = start(file)
    # Opens when the process has the lock and opens the pipe too.
    with file.open("w"):
        process.kill()
        process.communicate(timeout=60)
    partial = Path(f"{index_of(file)}.partial")
    assert partial.exists()
    file.unlink()
    write(file.parent, names(10))
    assert open_index(str(file)).paths.to_pylist() == names(10)
    assert not partial.exists()
