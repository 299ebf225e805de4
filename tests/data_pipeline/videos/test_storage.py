"""Where data lies: which paths are refused, and how much of an S3 object is read."""

import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.videos import split
from data_pipeline.videos.index import open_index
from data_pipeline.videos.range_reader import BLOCK_BYTES, CACHED_BLOCKS, RangeReader
from data_pipeline.videos.split import open_videos
from data_pipeline.videos.storage import OutsideRootError, open_media, parent, resolve
from tests.helpers.data_videos import Frames, write_video
from tests.helpers.s3_server import S3Server, s3_server

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root beside a folder that is none of its business."""
    for name in ("data/inner", "outside"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.mp4").touch()
    (tmp_path / "data/there").symlink_to(tmp_path / "outside")
    (tmp_path / "data/here").symlink_to("inner")
    (tmp_path / "data/link.mp4").symlink_to("../outside/a.mp4")
    (tmp_path / "data/round").symlink_to("round")
    (tmp_path / "door").symlink_to("data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("inner/a.mp4", "inner/a.mp4"),
        ("./inner//a.mp4", "inner/a.mp4"),
        ("here/a.mp4", "inner/a.mp4"),
        ("inner/../inner/a.mp4", "inner/a.mp4"),
        ("absent/b.mp4", "absent/b.mp4"),
        ("concat:a|b.mp4", "concat:a|b.mp4"),
        ("..a/b..mp4", "..a/b..mp4"),
    ],
)
def test_a_path_inside_of_the_root(root: Path, path: str, place: str) -> None:
    assert resolve(str(root), path) == str(root / place)
    assert resolve(str(root), str(root / path)) == str(root / place)
    # A root that is reached by a link, and paths that are spelled by way of it.
    door = root.parent / "door"
    assert resolve(str(door), path) == resolve(str(door), f"{door}/{path}") == str(root / place)


@pytest.mark.parametrize(
    "path",
    [
        "../outside/a.mp4",
        "inner/../../outside/a.mp4",
        "..",
        "/etc/passwd",
        "{root}-more/a.mp4",
        "there/a.mp4",
        "there/absent.mp4",
        "link.mp4",
        "here/../there/a.mp4",
        "s3://bucket/a.mp4",
    ],
)
def test_a_path_that_leaves_the_root_is_refused(root: Path, path: str) -> None:
    with pytest.raises(OutsideRootError, match=f"leaves the data root {root}") as raised:
        resolve(str(root), path.format(root=root))
    assert "set data.root to a folder that holds all videos" in str(raised.value)


def test_the_refusal_says_where_a_link_leads(root: Path) -> None:
    with pytest.raises(OutsideRootError, match=rf"it leads to {root.parent}/outside/a\.mp4"):
        resolve(str(root), "link.mp4")


def test_links_in_a_circle_and_the_root_of_all_are_no_trouble(root: Path) -> None:
    assert resolve(str(root), "round").startswith(str(root))
    assert resolve("/", "/etc/passwd") == "/etc/passwd"


OPTIONS = "?endpoint_override=127.0.0.1:9000&scheme=http"


@pytest.mark.parametrize("options", ["", OPTIONS, "?region=eu-west-1"])
@pytest.mark.parametrize(
    ("root", "path", "location"),
    [
        ("s3://bucket/data", "x/a.mp4", "s3://bucket/data/x/a.mp4"),
        ("s3://bucket/data/", "./x//a.mp4", "s3://bucket/data/x/a.mp4"),
        ("s3://bucket", "a b%20?c=d#e.mp4", "s3://bucket/a b%20?c=d#e.mp4"),
        ("s3://bucket/data", "s3://bucket/data/a.mp4", "s3://bucket/data/a.mp4"),
        ("s3://bucket", "s3://bucket/data/a.mp4", "s3://bucket/data/a.mp4"),
    ],
)
def test_a_key_inside_of_an_s3_root(root: str, path: str, location: str, options: str) -> None:
    assert resolve(root + options, path) == location + options


@pytest.mark.parametrize(
    "path",
    [
        "../a.mp4",
        "x/../../a.mp4",
        "/a.mp4",
        "s3://other/data/a.mp4",
        "s3://bucket/database/a.mp4",
        "s3://bucket/data/../a.mp4",
        "s3://",
    ],
)
def test_a_key_that_leaves_the_s3_root_is_refused(path: str) -> None:
    with pytest.raises(OutsideRootError, match="leaves the data root s3://bucket/data"):
        resolve("s3://bucket/data", path)


def test_the_folder_of_a_file() -> None:
    assert parent("/data/annotations.json") == "/data"
    assert parent(f"s3://bucket/sets/a.json{OPTIONS}") == f"s3://bucket/sets{OPTIONS}"
    assert parent("s3://bucket/a.json") == "s3://bucket/"
    with pytest.raises(DataError, match="names no S3 bucket"):
        parent("s3:///a.json")


def test_a_local_video_is_opened_by_its_path() -> None:
    assert open_media("/data/a.mp4") == "/data/a.mp4"


def reader_of(location: str) -> RangeReader:
    reader = open_media(location)
    assert isinstance(reader, RangeReader)
    return reader


def test_any_part_of_an_object_can_be_read(s3: S3Server) -> None:
    content = np.random.default_rng(0).bytes(3 * BLOCK_BYTES + 12_345)
    s3.put("parts/x/odd ?name%20.bin", content)
    with reader_of(resolve(f"s3://parts/x{s3.options}", "odd ?name%20.bin")) as reader:
        assert reader.seek(-10, io.SEEK_END) == len(content) - 10
        assert reader.read() == content[-10:]
        assert reader.read(5) == b""
        assert reader.seek(BLOCK_BYTES - 3) == BLOCK_BYTES - 3
        assert reader.seek(1, io.SEEK_CUR) == reader.tell() == BLOCK_BYTES - 2
        # Across the border of two blocks, in two bites.
        assert reader.read(7) + reader.read(7) == content[BLOCK_BYTES - 2 : BLOCK_BYTES + 7]
        assert reader.seek(0) == 0
        assert reader.read() == content
        assert reader.seek(len(content) + 100) == len(content) + 100
        assert reader.read(1) == b""
        with pytest.raises(ValueError, match="before the start"):
            reader.seek(-1)
    assert reader.closed
    with pytest.raises(ValueError, match="closed"):
        reader.read(1)


def test_a_long_read_takes_few_requests_and_keeps_few_blocks(s3: S3Server) -> None:
    blocks = 40
    s3.put("long/object.bin", bytes(blocks * BLOCK_BYTES))
    with reader_of(f"s3://long/object.bin{s3.options}") as reader:
        while reader.read(32_768):
            assert len(reader._blocks) <= CACHED_BLOCKS
        assert reader.bytes_read == blocks * BLOCK_BYTES
        # The opening, then 1, 2, 4, 8, 8, 8, 8 and the last block.
        assert reader.requests == 1 + 8
        # A jump starts small again, and what was just read is still there.
        reader.seek(0)
        reader.read(1)
        assert reader.bytes_read == (blocks + 1) * BLOCK_BYTES
        requests = reader.requests
        reader.seek((blocks - 1) * BLOCK_BYTES)
        reader.read(1)
        assert reader.requests == requests


def middle_frames(media: str | RangeReader) -> list[Frames]:
    """Nine frames from frame 60 on."""
    with av.open(media) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        rate = stream.average_rate
        assert rate is not None
        wanted = 60 / rate
        container.seek(int(wanted / stream.time_base), stream=stream)
        frames: list[Frames] = []
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts * stream.time_base >= wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == 9:
                break
        return frames


def test_a_clip_from_the_middle_reads_its_part_of_the_object(s3: S3Server, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 128, 160, 3), dtype=np.uint8)
    file = write_video(tmp_path / "noise.mp4", noise, lossless=True)
    content = file.read_bytes()
    assert len(content) > 5_000_000
    s3.put("videos/noise.mp4", content)

    expected = middle_frames(str(file))
    with reader_of(f"s3://videos/noise.mp4{s3.options}") as reader:
        frames = middle_frames(reader)
        assert reader.bytes_read < 0.35 * len(content)
        assert reader.requests < 8
    assert len(frames) == 9
    assert all(map(np.array_equal, frames, expected))


def test_what_is_not_there_is_missing(s3: S3Server) -> None:
    s3.put("some/object", b"x")
    for path in ("some/absent.mp4", "absent/object"):
        with pytest.raises(FileNotFoundError):
            open_media(f"s3://{path}{s3.options}")


def test_the_environment_names_the_server(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("environment/object", b"found")
    with pytest.raises(OSError):
        # Nobody listens on the discard port.
        open_media("s3://environment/object?endpoint_override=127.0.0.1:9&scheme=http")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        with monkeypatch.context() as patch:
            patch.setenv(name, f"http://{s3.address}/")
            with reader_of("s3://environment/object") as reader:
                assert reader.read() == b"found"


def test_a_data_set_on_s3(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    listed = ", ".join(f'{{"path": "v/{index}.mp4"}}' for index in range(100))
    s3.put("sets/one/annotations.json", f'{{"list": [{listed}]}}'.encode())
    location = f"s3://sets/one/annotations.json{s3.options}"
    training, validation = open_videos(location, "", 0.2, 0)
    assert len(training) + len(validation) == 100
    assert training.location(0) == f"s3://sets/one/{training.name(0)}{s3.options}"
    # The index is in the cache, and serves as long as the object's tag is the same.
    [index] = (tmp_path / "taehv" / "indexes").iterdir()
    written = index.stat().st_mtime_ns
    assert open_index(location).fingerprint == training.split.fingerprint
    assert index.stat().st_mtime_ns == written

    pickled = pickle.dumps(training)
    s3.put("sets/one/annotations.json", f'{{"list": [{listed.replace("v/", "w/")}]}}'.encode())
    assert open_index(location).paths[0].as_py() == "w/0.mp4"
    split._open_split.cache_clear()
    with pytest.raises(DataError, match="lists other videos"):
        pickle.loads(pickled)

    s3.put("sets/wrong.json", b'{"list": [}')
    with pytest.raises(DataError, match=r"sets/wrong\.json\?.* is not JSON: .* column 11"):
        open_index(f"s3://sets/wrong.json{s3.options}")
    with pytest.raises(DataError, match=r"absent\.json\?.* does not exist; set data.annotations"):
        open_index(f"s3://sets/absent.json{s3.options}")


def test_small_processes_do_without_pyarrow() -> None:
    program = "import sys, data_pipeline.videos.storage; print('pyarrow' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, check=True
    )
    assert result.stdout == b"False\n"
