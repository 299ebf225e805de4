"""What decoding writes: every video under its own name, whole, and over nothing else."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from pyarrow import fs

from jobs import encode
from jobs.latents.names import MAX_NAME_BYTES, UnnamedVideoError, names_of, plain_name
from taehv.model import TAEHV
from taehv.model.weights import export_weights
from tests.helpers.data_videos import (
    moving_frames,
    sequential_frames,
    write_annotations,
    write_video,
)
from tests.helpers.evaluate_run import SMALL
from tests.helpers.jobs_run import finish, wait_for
from tests.helpers.s3_server import s3_server
from tests.jobs.test_encode import contents, options, refused, start

DIGEST = 17
"""Characters that tell a name apart from others."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    export_weights(TAEHV(SMALL).state_dict(), folder / "w.pth", folder / "w.safetensors")
    return folder / "w.pth"


@pytest.fixture(scope="module")
def latents(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two videos, of 3 and of 6 frames."""
    folder = tmp_path_factory.mktemp("videos")
    for frames in (3, 6):
        write_video(folder / f"{frames}.mp4", moving_frames(frames, 48, 64, frames))
    listed = write_annotations(folder, ["3.mp4", "6.mp4"])
    assert encode.main(options(weights, listed, folder / "latents")) == 0
    return folder / "latents"


def decoding(weights: Path, latents: Path | str, output: Path | str, form: str) -> list[str]:
    return [
        *("--checkpoint", str(weights), "--decode", str(latents), "--output-dir", str(output)),
        *("--decode-to", form, "--ray.use", "no"),
    ]


@pytest.mark.parametrize(
    ("video", "name"),
    [
        ("a/b.mp4", "a/b.mp4"),
        ("b.mkv", "b.mkv.mp4"),
        ("clip", "clip.mp4"),
        ("./a//b.mp4", "a/b.mp4"),
        ("a/../b.mp4", "b.mp4"),
        ("../root/b.mp4", "b.mp4"),
        ("a/../../root/b.mp4", "b.mp4"),
        ("/data/b.mkv", "data/b.mkv.mp4"),
        ("s3://bucket/b.mp4", "bucket/b.mp4"),
        ("..\\b.mp4", "..\\b.mp4"),
        ("%2e%2e/b.mp4?a=b", "%2e%2e/b.mp4?a=b.mp4"),
    ],
)
def test_a_name_is_the_path_inside_of_the_root(video: str, name: str) -> None:
    assert plain_name(video, "/data/root", "mp4") == name
    assert names_of([video, "z.mp4"], "/data/root", "mp4").of(video) == name


@pytest.mark.parametrize("video", ["../b.mp4", "a/../../b.mp4", "/", "", ".", "../rooted/b.mp4"])
def test_what_leads_out_of_the_root_has_no_name(video: str) -> None:
    with pytest.raises(UnnamedVideoError, match="leads out of the data root"):
        names_of([video], "/data/root", "png").of(video)


@pytest.mark.parametrize("form", ["mp4", "png"])
def test_any_videos_have_names_that_are_told_apart(form: str) -> None:
    """Of lists that are made to collide, in any order: also where case does not count."""
    draw = random.Random(0)
    pieces = ["a", "A", "é", "e\u0301", ".mp4", ".frames", "/", "~" + "0" * 16, "n" * 200]
    for _ in range(300):
        videos = {"".join(draw.choices(pieces, k=draw.randint(1, 5))) for _ in range(12)}
        videos = {"x" + video.strip("/").replace("//", "/") for video in videos}
        # One of the names that told others apart before.
        videos |= {names_of(videos, "/root", form).of(video) for video in [*videos][:2]}
        listed = [*videos, *draw.choices([*videos], k=3)]
        names = names_of(listed, "/root", form)
        given = {video: names.of(video) for video in videos}
        draw.shuffle(listed)
        again = names_of(listed, "/root", form)
        assert given == {video: again.of(video) for video in videos}
        folded = {name.casefold() for name in given.values()}
        assert len(folded) == len(videos)
        for name in folded:
            parts = name.split("/")
            assert not folded & {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        assert all(
            len(part.encode()) <= MAX_NAME_BYTES for n in given.values() for part in n.split("/")
        )


def test_what_was_encoded_is_decoded(weights: Path, tmp_path: Path) -> None:
    """Whatever its path is spelled like; the number of frames tells which video it is."""
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    long = "n" * 251 + ".mkv"
    videos = {
        "clip": 2,
        "clip.mp4": 3,
        "CLIP.mp4": 4,
        "clip.avi": 5,
        "x.mp4": 6,
        "y.mp4": 7,
        long: 8,
    }
    for name, frames in videos.items():
        made = write_video(tmp_path / "v.mp4", moving_frames(frames, 48, 64, frames))
        shutil.move(made, root / name)
    spelled = ["clip", "clip.mp4", "CLIP.mp4", "clip.avi", "a/../x.mp4", "../root/y.mp4", long]
    for number, order in enumerate((spelled, [*reversed(spelled)])):
        listed = write_annotations(root, order)
        place = tmp_path / f"latents_{number}"
        assert encode.main(options(weights, listed, place)) == 0
        assert not (place / "quarantine.jsonl").read_text()
        output = tmp_path / f"videos_{number}"
        assert encode.main(decoding(weights, place, output, "mp4")) == 0
        found = {file.name: len(sequential_frames(file)) for file in output.glob("*.mp4")}
        assert sorted(found.values()) == sorted(videos.values())
        assert (found["clip.avi.mp4"], found["x.mp4"], found["y.mp4"]) == (5, 6, 7)
        # Those of one name say which they are.
        stems = {name[: -len(".mp4") - DIGEST]: found[name] for name in found if "~" in name}
        assert {stem: stems[stem] for stem in ("clip", "clip.mp4", "CLIP.mp4")} == {
            "clip": 2,
            "clip.mp4": 3,
            "CLIP.mp4": 4,
        }
    names = [{file.name for file in (tmp_path / f"videos_{n}").glob("*.mp4")} for n in range(2)]
    assert names[0] == names[1]


def test_a_video_without_a_name_is_left_out_alone(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the latents say they are of another root, its path leads out of it."""
    root = tmp_path / "root"
    root.mkdir()
    for frames in (3, 6):
        write_video(root / f"{frames}.mp4", moving_frames(frames, 48, 64, frames))
    listed = write_annotations(root, ["../root/3.mp4", "6.mp4"])
    assert encode.main(options(weights, listed, tmp_path / "latents")) == 0
    file = tmp_path / "latents" / "latents.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"root": "/another"}))
    assert encode.main(decoding(weights, tmp_path / "latents", tmp_path / "v", "mp4")) == 0
    assert [path.name for path in (tmp_path / "v").glob("*.mp4")] == ["6.mp4"]
    assert (
        "video ../root/3.mp4 is left out: '../root/3.mp4' leads out of" in capsys.readouterr().err
    )


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_folder_that_lacks_pictures_is_made_anew(
    weights: Path, latents: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a killed job may leave one in a store; what is somebody else's in it is not touched."""
    whole = tmp_path / "whole"
    assert encode.main(decoding(weights, latents, whole, "png")) == 0
    expected = contents(whole)
    assert len([name for name in expected if name.endswith(".png")]) == 9
    with s3_server() as server:
        output: Path | str = tmp_path / "v"
        store, base = fs.LocalFileSystem(), str(output)
        if place == "s3":
            server.put("bucket/there", b"")
            output = f"s3://bucket/v{server.options}"
            store, base = fs.FileSystem.from_uri(output)
        assert encode.main(decoding(weights, latents, output, "png")) == 0

        def there() -> dict[str, bytes]:
            found = store.get_file_info(fs.FileSelector(base, recursive=True))
            files = [info.path for info in found if info.type == fs.FileType.File]
            return {path[len(base) + 1 :]: store.open_input_stream(path).read() for path in files}

        assert there() == expected
        for picture in ("6.mp4.frames/000005.png", "3.mp4.frames/000000.png"):
            store.delete_file(f"{base}/{picture}")
        assert encode.main(decoding(weights, latents, output, "png")) == 0
        assert there() == expected

        store.delete_file(f"{base}/6.mp4.frames/000005.png")
        with store.open_output_stream(f"{base}/6.mp4.frames/holiday.png") as stream:
            stream.write(b"mine")
        before = there()
        assert encode.main(decoding(weights, latents, output, "png")) == 0
        assert there() == before
        told = capsys.readouterr().err
        assert "video 6.mp4 is left out" in told
        assert "holds holiday.png, which is none of its pictures" in told


def test_a_killed_decoding_goes_on(weights: Path, tmp_path: Path) -> None:
    """Killed among the pictures of a video, it makes all of them."""
    write_video(tmp_path / "v.mp4", moving_frames(400, 48, 64))
    listed = write_annotations(tmp_path, ["v.mp4"])
    assert encode.main(options(weights, listed, tmp_path / "latents")) == 0
    words = decoding(weights, tmp_path / "latents", tmp_path / "out", "png")
    process = start(tmp_path / "home", *words)
    wait_for(lambda: len([*(tmp_path / "out").rglob("*.png")]) > 20, "some pictures", process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert len([*(tmp_path / "out").rglob("*.png")]) < 400
    assert encode.main(words) == 0
    found = sorted(path.name for path in (tmp_path / "out" / "v.mp4.frames").iterdir())
    assert found == [f"{number:06d}.png" for number in range(400)]
    assert not [*(tmp_path / "out").glob(".*.unfinished")]


@pytest.mark.parametrize("name", ["6.mp4", "6.mp4.frames/holiday.png"])
@pytest.mark.parametrize("form", ["mp4", "png"])
def test_what_others_left_is_neither_taken_nor_replaced(
    weights: Path,
    latents: Path,
    tmp_path: Path,
    form: str,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"mine")
    line = refused(capsys, encode.main(decoding(weights, latents, tmp_path, form)))
    assert f"holds something else already ({name.split('/')[0]}): choose another" in line
    assert contents(tmp_path) == {name: b"mine"}


def test_the_videos_of_other_weights_are_not_taken_for_these(
    weights: Path, latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode.main(decoding(weights, latents, tmp_path / "v", "mp4")) == 0
    before = contents(tmp_path / "v")
    state = torch.load(weights, weights_only=True)
    state["decoder.22.weight"] *= 2
    torch.save(state, tmp_path / "other.pth")
    words = decoding(tmp_path / "other.pth", latents, tmp_path / "v", "mp4")
    assert "holds the videos of other latents or weights" in refused(capsys, encode.main(words))
    assert contents(tmp_path / "v") == before
