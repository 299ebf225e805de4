"""Lists of videos in every form: each gives the same paths, and a wrong one is told apart."""

import errno
import json
import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from data_pipeline.errors import DataError
from data_pipeline.videos import split
from data_pipeline.videos.annotations import unreadable
from data_pipeline.videos.index import open_index
from data_pipeline.videos.lists import HEAD_BYTES, list_paths
from data_pipeline.videos.split import VideoSet, open_videos
from tests.helpers.s3_server import S3Server, s3_server

PATHS = ["b/é 🚗.mp4", "a.mp4", "/full/c, d.mp4", 'say "x".mp4', "#5.mp4"]


@pytest.fixture(autouse=True)
def _fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    split._open_split.cache_clear()
    yield
    split._open_split.cache_clear()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def table(separator: str) -> str:
    quoted = ['"{}"'.format(path.replace('"', '""')) for path in PATHS]
    rows = [separator.join(["7", path, "x"]) for path in quoted]
    return "\n".join([separator.join(["frames", "path", "note"]), *rows])


OBJECTS = [{"path": path, "frames": 7} for path in PATHS]
TEXTS = {
    "mini.json": json.dumps({"total": 5, "list": OBJECTS}, indent=1),
    "strings.json": json.dumps(PATHS),
    "objects.json": json.dumps(OBJECTS, ensure_ascii=False, indent=2),
    "lines.jsonl": "\n".join(map(json.dumps, OBJECTS)),
    "paths.txt": "\n".join(PATHS),
    "paths_of_windows.txt": "\ufeff" + "\r\n".join(["", *PATHS, "", ""]),
    "table.csv": table(","),
    "table.tsv": table("\t"),
    # The ending says nothing: what is in the file does.
    "json.txt": json.dumps(PATHS),
    "lines.json": "\n".join(map(json.dumps, OBJECTS)) + "\n",
    "table": table(","),
    "paths": "\n".join(PATHS) + "\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_every_form_gives_the_same_paths(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TEXTS[name])
    assert list(list_paths(str(tmp_path / name))) == PATHS
    assert open_index(str(tmp_path / name)).paths.to_pylist() == PATHS


def test_a_long_list_is_read_beyond_its_head(tmp_path: Path) -> None:
    paths = [f"some/folder/of/videos/{n:06d}.mp4" for n in range(5000)]
    for name, text in (
        ("long.txt", "\n".join(paths)),
        ("long.csv", "\n".join(["path", *paths])),
        ("long.json", json.dumps(paths)),
        ("long.jsonl", "\n".join(json.dumps({"path": path}) for path in paths)),
    ):
        (tmp_path / name).write_text(text)
        assert list(list_paths(str(tmp_path / name))) == paths


@pytest.mark.parametrize("column", ["path", "full_path"])
def test_parquet(tmp_path: Path, column: str) -> None:
    rows = pa.table({"frames": [7] * 5, column: PATHS})
    parquet.write_table(rows, tmp_path / "videos.parquet", row_group_size=2)
    assert list(list_paths(str(tmp_path / "videos.parquet"))) == PATHS
    assert open_index(str(tmp_path / "videos.parquet")).paths.to_pylist() == PATHS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "lists no videos: it is empty"),
        ("a.txt", b"\n\n", "lists no videos"),
        ("a.txt", b"a.mp4\n\xff\xfe.mp4\n", "is not text in UTF-8"),
        ("a.mp4", b"\x00\x00\x00\x18ftypmp42", "is no list of videos: it holds binary data"),
        ("a.csv", b"video,frames\na.mp4,7\n", "no column 'path' .*columns: 'video', 'frames'"),
        ("a.csv", b"path,frames\na.mp4\n", "line 2 .* has 1 values for 2 columns"),
        ("a.csv", b"path,frames\na.mp4,1\n,2\n", "line 3 .* has '' as 'path'"),
        ("a.csv", b"path,frames\n", "lists no videos"),
        ("a.jsonl", b'{"path": "a"}\n{"path": "b"\n', "line 2 .* is not JSON: "),
        ("a.jsonl", b'{"path": "a"}\n{"p": "b"}\n', "line 2 .* has neither 'path' nor"),
        ("a.json", b'["a.mp4", 7]', "entry 1 in .* is a number"),
        ("a.json", b'["a.mp4", ""]', "entry 1 in .* is ''; a path is a text"),
        ("a.json", b"[]", "lists no videos: its list is empty"),
        # Of all lines behind the first quotation mark one value would be made, without a word.
        ("a.tsv", b'path\tnote\na.mp4\t"Stop!\nb.mp4\tx\n', "is no table, at or before line 3"),
        ("a.csv", b'path,note\na.mp4,"Stop!\nb.mp4,"x\n', "is no table, at or before line 3"),
        ("a.json", b'["a.mp4",]', "is not JSON: .* line 1"),
        ("a.parquet", b"PAR1" + bytes(50), "is damaged Parquet"),
    ],
)
def test_a_wrong_list_is_told_apart(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(list_paths(str(tmp_path / name)))


def test_parquet_without_a_path_column(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"video": ["a.mp4"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'path' .columns: 'video'"):
        list(list_paths(str(tmp_path / "a.parquet")))
    parquet.write_table(pa.table({"path": ["a.mp4", None]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"row 1 of .* has None as 'path'"):
        list(list_paths(str(tmp_path / "b.parquet")))


FILES = [
    "z.mp4",
    "b/2.MKV",
    "b/1.mov",
    "b/deep/x.webm",
    "a/notes.txt",
    ".hidden.mp4",
    ".cache/y.mp4",
    "b/1.mov.index.arrow",
]
FOUND = ["z.mp4", "b/1.mov", "b/2.MKV", "b/deep/x.webm"]


def fill(folder: Path) -> Path:
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_a_folder_is_all_videos_below_it(tmp_path: Path) -> None:
    folder = fill(tmp_path / "videos")
    (folder / "to_elsewhere").symlink_to(tmp_path)
    assert list(list_paths(str(folder))) == FOUND
    training, validation = open_videos(str(folder), "", 0.3, 0)
    assert sorted([*training, *validation]) == sorted(FOUND)
    for side in (training, validation):
        assert side.location(0) == str(folder / side.name(0))


def test_a_folder_is_listed_anew_by_every_start_and_by_nobody_else(tmp_path: Path) -> None:
    folder = fill(tmp_path / "videos")
    before, _ = open_videos(str(folder), "", 0.3, 0)
    (folder / "new.mp4").write_bytes(b"x")
    assert open_index(str(folder)).paths.to_pylist() == FOUND
    after = [*open_videos(str(folder), "", 0.3, 0)]
    assert "new.mp4" in [*after[0], *after[1]]
    assert set(before) <= {*after[0]}


def test_an_index_of_an_earlier_start_is_not_taken_for_another_list(tmp_path: Path) -> None:
    """As a node has it in its cache, or another user's lies beside the folder."""
    folder = fill(tmp_path / "videos")
    index = Path(f"{folder}.index.arrow")
    open_videos(str(folder), "", 0.3, 0)
    earlier = index.read_bytes()
    (folder / "new.mp4").write_bytes(b"x")
    training, _ = open_videos(str(folder), "", 0.3, 0)
    words = pickle.dumps(training)
    split._open_split.cache_clear()
    index.unlink()  # which is mapped
    index.write_bytes(earlier)
    assert list(pickle.loads(words)) == list(training)


def test_names_and_folders_that_cannot_be_used_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fill(tmp_path / "videos")
    # In Latin-1, as old archives have it.
    Path(os.fsdecode(os.fsencode(folder) + b"/stra\xdfe.mp4")).write_bytes(b"x")
    (folder / "lost+found").mkdir()
    (folder / "lost+found" / "z.mp4").write_bytes(b"x")
    (folder / "linked").symlink_to(folder / "b")
    with caplog.at_level(logging.INFO):
        assert list(list_paths(str(folder))) == FOUND
    assert r"'stra\udcdfe.mp4' is not Unicode text: rename it" in caplog.text
    assert "1 links to folders below" in caplog.text


def test_what_cannot_be_read_within_a_folder_is_named() -> None:
    refused = PermissionError(errno.EACCES, "Permission denied", "/data/private")
    message = "the annotation file /data cannot be read: Permission denied (/data/private)"
    assert str(unreadable("/data", refused)) == message


def test_long_first_lines_and_values(tmp_path: Path) -> None:
    """Lists that hold what was recognised in each frame."""
    boxes = list(range(40_000))
    lines = [json.dumps({"path": path, "boxes": boxes}) for path in PATHS]
    assert len(lines[0]) > 3 * HEAD_BYTES
    (tmp_path / "list").write_text("\n".join(lines))
    assert list(list_paths(str(tmp_path / "list"))) == PATHS
    quoted = ['"{}"'.format(path.replace('"', '""')) for path in PATHS]
    rows = [f'{path},"{boxes}"' for path in quoted]
    (tmp_path / "list.csv").write_text("\n".join(["path,boxes", *rows]))
    assert list(list_paths(str(tmp_path / "list.csv"))) == PATHS


@pytest.mark.parametrize("first", ["[2024-05] drive.mp4", "{a} b.mp4"])
def test_a_file_name_may_begin_with_a_bracket(tmp_path: Path, first: str) -> None:
    (tmp_path / "list.txt").write_text(f"{first}\nb.mp4\n")
    assert list(list_paths(str(tmp_path / "list.txt"))) == [first, "b.mp4"]


def test_a_folder_without_videos(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no video, that is no file that ends in \.mp4"):
        list(list_paths(str(tmp_path)))


def test_a_folder_and_a_table_on_s3(s3: S3Server) -> None:
    for name in FILES:
        s3.put(f"drives/videos/{name}", b"x")
    s3.put("drives/list.csv", table(",").encode())
    folder = f"s3://drives/videos{s3.options}"
    assert sorted(list_paths(folder)) == sorted(FOUND)
    training, validation = open_videos(folder, "", 0.3, 0)
    assert len(training) + len(validation) == 4
    name = training.name(0)
    assert training.location(0) == f"s3://drives/videos/{name}{s3.options}"
    assert list(list_paths(f"s3://drives/list.csv{s3.options}")) == PATHS
    rows = pa.BufferOutputStream()
    parquet.write_table(pa.table({"path": PATHS}), rows)
    s3.put("drives/list.parquet", rows.getvalue().to_pybytes())
    assert list(list_paths(f"s3://drives/list.parquet{s3.options}")) == PATHS


def test_a_file_on_s3_is_one_video_however_its_path_is_written(s3: S3Server) -> None:
    """The root has options, and the paths of a list have none."""
    names = [f"car{n % 20}/{n:03d}.mp4" for n in range(60)]
    full = [f"s3://drives/cars/{name}" for name in names]
    s3.put("drives/cars/both.txt", "\n".join([*names, *full]).encode())
    s3.put("drives/cars/full.txt", "\n".join(full).encode())
    s3.put("drives/cars/held_out.txt", "\n".join(full[:7]).encode())
    listed, held_out = (f"s3://drives/cars/{name}.txt{s3.options}" for name in ("both", "held_out"))

    def locations(side: VideoSet) -> set[str]:
        return {side.location(n) for n in range(len(side))}

    training, validation = map(locations, open_videos(listed, "", 0.3, 0))
    assert not training & validation
    assert len(training | validation) == 60
    training, validation = map(
        locations, open_videos(listed, "", 0.3, 0, validation_annotations=held_out)
    )
    assert not training & validation
    assert (len(training), len(validation)) == (53, 7)
    full_list = f"s3://drives/cars/full.txt{s3.options}"
    by_car = open_videos(full_list, "", 0.3, 0, split_by="1")
    cars = [{name.split("/")[4] for name in side} for side in by_car]
    assert not cars[0] & cars[1]
    assert len(cars[0] | cars[1]) == 20


# ------------------------------------------------------------------ the split of such lists


def sides(folder: Path, paths: list[str], fraction: float = 0.3, **more: str) -> list[VideoSet]:
    (folder / "list.txt").write_text("\n".join(paths))
    return [*open_videos(str(folder / "list.txt"), "", fraction, 0, **more)]


def test_a_file_is_one_video_however_its_path_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = [f"drive/{n:03d}.mp4" for n in range(60)]
    dotted = [f"./drive//{n:03d}.mp4" for n in range(60)]
    full = [f"{tmp_path}/drive/{n:03d}.mp4" for n in range(60)]
    expected = {*sides(tmp_path, plain)[0]}
    for listed in ([*plain, *dotted, *full], [*full, *plain[::-1]], [*dotted, *full]):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            training, validation = sides(tmp_path, listed)
        locations = [{s.location(n) for n in range(len(s))} for s in (training, validation)]
        assert not locations[0] & locations[1]
        assert len(locations[0] | locations[1]) == 60
        assert f"{len(listed) - 60} of the {len(listed)} entries" in caplog.text
        if listed[0] != full[0]:
            # As where each is listed once: nothing moves by it.
            assert locations[0] == {str(tmp_path / path) for path in expected}


@pytest.mark.parametrize("split_by", ["1", r"^(car\d+)", r"car\d+(?=/)"])
def test_a_drive_is_on_one_side(tmp_path: Path, split_by: str) -> None:
    paths = [f"car{car}/part_{part}.mp4" for car in range(40) for part in range(6)]
    training, validation = sides(tmp_path, paths, split_by=split_by)
    drives = [{name.partition("/")[0] for name in side} for side in (training, validation)]
    assert not drives[0] & drives[1]
    assert len(training) + len(validation) == 240
    assert 4 <= len(drives[1]) <= 20


def test_a_video_of_no_drive_is_one_by_itself_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [*(f"car{n}/x.mp4" for n in range(10)), "loose.mp4", "also_loose.mp4"]
    training, validation = sides(tmp_path, paths, split_by="1")
    assert sorted([*training, *validation]) == sorted(paths)
    assert "data.split_by 1 says nothing of 2 of 12 videos" in caplog.text


def test_one_drive_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="makes one drive of all 3 videos"):
        sides(tmp_path, ["a/1.mp4", "a/2.mp4", "a/3.mp4"], split_by="1")


def test_the_held_out_videos_are_the_users_to_name(tmp_path: Path) -> None:
    (tmp_path / "held_out.csv").write_text(f"path\nb.mp4\n{tmp_path}/c.mp4\nelsewhere.mp4\n")
    held_out = str(tmp_path / "held_out.csv")
    training, validation = sides(
        tmp_path, ["a.mp4", "./b.mp4", "c.mp4", "d.mp4"], validation_annotations=held_out
    )
    assert list(training) == ["a.mp4", "d.mp4"]
    assert list(validation) == ["b.mp4", f"{tmp_path}/c.mp4", "elsewhere.mp4"]
    assert validation.location(0) == str(tmp_path / "b.mp4")
    with pytest.raises(DataError, match=r"names every video of .*none is left to train on"):
        sides(tmp_path, ["b.mp4", "c.mp4"], validation_annotations=held_out)


def test_a_held_out_video_is_the_same_through_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "disk", tmp_path / "data"
    real.mkdir()
    link.symlink_to(real)
    for name in ("a.mp4", "b.mp4"):
        (real / name).write_bytes(b"x")
    (real / "all.txt").write_text("a.mp4\nb.mp4\n")
    (tmp_path / "held_out.txt").write_text(f"{real}/b.mp4\n")
    training, validation = open_videos(
        f"{link}/all.txt", str(link), 0.3, 0, validation_annotations=f"{tmp_path}/held_out.txt"
    )
    assert list(training) == ["a.mp4"]
    assert validation.location(0) == f"{real}/b.mp4"
