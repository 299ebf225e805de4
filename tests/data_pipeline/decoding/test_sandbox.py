"""A window reader outlives what a file does to its decoder, and tells faults apart."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.decoding import sandbox
from data_pipeline.decoding.cores import CoreTimes, core_times, time_waiting
from data_pipeline.decoding.sandbox import MAX_RETRIES, KilledError, TimedOutError, WindowReader
from data_pipeline.decoding.window import WindowRequest, read_window
from data_pipeline.errors import TransientVideoError, UnusableVideoError
from data_pipeline.plan import CENTRE
from tests.helpers.data_videos import moving_frames, write_video
from tests.helpers.s3_server import s3_server

SECONDS = 30.0

BROKEN_CHILD = """
import os, signal, sys, time
from data_pipeline.decoding import sandbox_process

def hang_in_c():
    # Nothing of Python runs while it waits, as inside of a decoder that holds the interpreter.
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL})
    import ctypes
    ctypes.PyDLL(None).sleep(1000)

def break_down(request):
    match request.location:
        case "hang": hang_in_c()
        case "spin":
            while True: pass
        case "crash": os.kill(os.getpid(), signal.SIGSEGV)
        case "abort": os.abort()
        case "exit": os._exit(7)
        case location if os.path.exists(location + ".kills"):
            left = os.path.getsize(location + ".kills") - 1
            os.truncate(location + ".kills", left)
            if not left:
                os.unlink(location + ".kills")
            os.kill(os.getpid(), signal.SIGKILL)
        case "bug": return {}["no such key"]
        case "memory": return bytes(2**40)
        case "print": print("something", flush=True)
    return read_window(request)

read_window, sandbox_process.read_window = sandbox_process.read_window, break_down
sandbox_process.main()
"""
"""Breaks down for certain locations, in the ways that FFmpeg or a bug can bring about."""

BROKEN = (sys.executable, "-c", BROKEN_CHILD)


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> WindowRequest:
    """For a sound video."""
    path = write_video(tmp_path_factory.mktemp("data") / "a.mp4", moving_frames(30))
    return WindowRequest(
        location=str(path),
        span=(0.0, 1.0),
        start=0.3,
        window_frames=20,
        clips=(CENTRE, replace(CENTRE, offset=0.7, flip=True)),
        num_frames=5,
        height=16,
        width=24,
    )


@pytest.fixture
def reader() -> Iterator[WindowReader]:
    with WindowReader(BROKEN) as reader:
        yield reader


def child_of(reader: WindowReader) -> int:
    assert reader._child is not None
    return reader._child.pid


def is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False
    return "State:\tZ" not in status


def check_sound(reader: WindowReader, request: WindowRequest) -> None:
    expected = read_window(request)
    window = reader.read(request, SECONDS)
    assert window.decoded == expected.decoded
    assert window.frames.flags.writeable
    np.testing.assert_array_equal(window.frames, expected.frames)


def test_clips_are_those_of_a_read_in_this_process(request_: WindowRequest) -> None:
    with WindowReader() as reader:
        check_sound(reader, request_)
        child = child_of(reader)
        check_sound(reader, replace(request_, start=0.9, clips=(CENTRE,)))
        assert child_of(reader) == child
    assert not is_running(child)


def test_a_bad_video_costs_no_process(request_: WindowRequest, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with WindowReader() as reader:
        check_sound(reader, request_)
        child = child_of(reader)
        for location, reason in ((bad, "cannot be opened: "), (tmp_path / "absent", "missing")):
            with pytest.raises(UnusableVideoError, match=reason) as raised:
                reader.read(replace(request_, location=str(location)), SECONDS)
            assert not isinstance(raised.value, TimedOutError)
        check_sound(reader, request_)
        assert child_of(reader) == child


def test_a_hanging_decoder_is_stopped(reader: WindowReader, request_: WindowRequest) -> None:
    check_sound(reader, request_)
    child = child_of(reader)
    begin = time.monotonic()
    with pytest.raises(TimedOutError, match=r"no clip after 0.5 s; its decoder was stopped"):
        reader.read(replace(request_, location="hang"), 0.5)
    assert time.monotonic() - begin < 3
    assert not is_running(child)
    check_sound(reader, request_)


def test_a_spinning_decoder_is_stopped(reader: WindowReader, request_: WindowRequest) -> None:
    check_sound(reader, request_)
    child = child_of(reader)
    with pytest.raises(TimedOutError, match="its decoder was stopped"):
        reader.read(replace(request_, location="spin"), 0.5)
    assert not is_running(child)


@pytest.mark.parametrize("times", [1, MAX_RETRIES[KilledError]])
def test_a_child_that_is_killed_costs_no_video(
    reader: WindowReader, request_: WindowRequest, times: int
) -> None:
    expected = reader.read(request_, SECONDS)
    kills = Path(request_.location + ".kills")
    kills.write_text(times * "x")
    again = reader.read(request_, SECONDS)
    assert not kills.exists()
    np.testing.assert_array_equal(again.frames, expected.frames)


def test_a_window_whose_children_are_all_killed_is_a_matter_of_the_moment(
    reader: WindowReader, request_: WindowRequest
) -> None:
    Path(request_.location + ".kills").write_text((1 + MAX_RETRIES[KilledError]) * "x")
    with pytest.raises(KilledError, match=r"its decoder was killed \(SIGKILL\)"):
        reader.read(request_, SECONDS)
    assert issubclass(KilledError, TransientVideoError)
    check_sound(reader, request_)


def test_a_store_that_does_not_answer_is_a_matter_of_the_moment(
    request_: WindowRequest,
) -> None:
    location = "s3://bucket/a.mp4?endpoint_override=127.0.0.1:9&scheme=http"
    with s3_server(), WindowReader() as reader, pytest.raises(TransientVideoError):
        reader.read(replace(request_, location=location), 120.0)


@pytest.mark.parametrize(("fault", "name"), [("crash", "SIGSEGV"), ("abort", "SIGABRT")])
def test_a_crash_is_a_verdict_on_the_video(
    reader: WindowReader, request_: WindowRequest, fault: str, name: str
) -> None:
    for _ in range(2):
        with pytest.raises(UnusableVideoError, match=rf"crashed the decoder \({name}\)"):
            reader.read(replace(request_, location=fault), SECONDS)
        check_sound(reader, request_)


def test_too_much_memory_is_a_verdict_on_the_video(
    reader: WindowReader, request_: WindowRequest
) -> None:
    for broken in (
        replace(request_, location="memory"),
        replace(request_, height=2**16, width=2**16),
    ):
        with pytest.raises(UnusableVideoError, match="needs too much memory"):
            reader.read(broken, SECONDS)
        check_sound(reader, request_)


def test_a_bug_is_no_verdict_on_the_video(reader: WindowReader, request_: WindowRequest) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)bug failed:.*in break_down.*KeyError: 'no such"):
        reader.read(replace(request_, location="bug"), SECONDS)
    with pytest.raises(RuntimeError, match="ended with exit code 7"):
        reader.read(replace(request_, location="exit"), SECONDS)
    check_sound(reader, request_)


def test_a_child_that_cannot_start_is_no_verdict_on_the_video(request_: WindowRequest) -> None:
    reader = WindowReader((sys.executable, "-c", "raise SystemExit('no such module')"))
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        reader.read(request_, SECONDS)


def test_what_is_printed_does_not_mix_with_the_clips(
    reader: WindowReader, request_: WindowRequest
) -> None:
    with pytest.raises(UnusableVideoError, match="missing"):
        reader.read(replace(request_, location="print"), SECONDS)
    check_sound(reader, request_)


def test_a_child_that_died_between_two_reads_is_replaced(
    reader: WindowReader, request_: WindowRequest
) -> None:
    check_sound(reader, request_)
    child = child_of(reader)
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: not is_running(child), "the child has ended")
    check_sound(reader, request_)


def test_a_child_is_replaced_before_it_has_grown(
    request_: WindowRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "READS_PER_CHILD", 3)
    children = []
    with WindowReader() as reader:
        for _ in range(7):
            check_sound(reader, request_)
            children.append(child_of(reader))
    assert [children.count(child) for child in dict.fromkeys(children)] == [3, 3, 1]


def test_the_time_limit_covers_the_start_and_the_transfer(request_: WindowRequest) -> None:
    slow = (sys.executable, "-c", "import time; time.sleep(1000)")
    with WindowReader(slow) as reader, pytest.raises(TimedOutError):
        reader.read(request_, 0.3)
    half = (
        "import os, time; from data_pipeline.decoding.sandbox_process import CLIPS, REPLY\n"
        "os.write(1, REPLY.pack(CLIPS, 9, 10**6) + bytes(1000)); time.sleep(1000)"
    )
    with WindowReader((sys.executable, "-c", half)) as reader, pytest.raises(TimedOutError):
        reader.read(request_, 2.0)


def test_a_big_reply_arrives_whole(request_: WindowRequest) -> None:
    with WindowReader() as reader:
        check_sound(reader, replace(request_, clips=(CENTRE,) * 8, height=360, width=480))


def test_a_window_of_large_frames_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    picture = moving_frames(2, 720, 1280)
    path = write_video(tmp_path / "a.mp4", picture[np.arange(50) % 2], codec="mpeg4", b_frames=0)
    request = WindowRequest(
        location=str(path),
        span=(0.0, 1.0),
        start=0.0,
        window_frames=50,
        clips=(CENTRE,),
        num_frames=50,
        height=32,
        width=32,
    )
    with WindowReader() as reader:
        reader.read(replace(request, num_frames=2), SECONDS)
        before = peak_memory(child_of(reader))
        reader.read(request, SECONDS)
        # All frames together are 69 MB.
        assert peak_memory(child_of(reader)) - before < 10e6


def test_a_video_on_s3(request_: WindowRequest) -> None:
    with s3_server() as server, WindowReader() as reader:
        server.put("videos/a.mp4", Path(request_.location).read_bytes())
        remote = replace(request_, location=f"s3://videos/a.mp4{server.options}")
        clips = reader.read(remote, SECONDS).frames
        np.testing.assert_array_equal(clips, read_window(request_).frames)
        with pytest.raises(UnusableVideoError, match="missing"):
            reader.read(replace(remote, location=f"s3://videos/b.mp4{server.options}"), SECONDS)


def peak_memory(process: int) -> float:
    """In bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) * 1024


PARENT = """
import pickle, sys
from data_pipeline.errors import UnusableVideoError
from data_pipeline.decoding.sandbox import WindowReader
from tests.data_pipeline.decoding.test_sandbox import BROKEN, child_of

reader = WindowReader(BROKEN)
for request in pickle.loads(bytes.fromhex(sys.argv[1])):
    try:
        reader.read(request, 1000)
    except UnusableVideoError:
        print(child_of(reader), flush=True)
input()
"""


@pytest.mark.parametrize("last", ["hang", "absent"], ids=["hanging", "waiting"])
def test_the_child_ends_with_its_parent(request_: WindowRequest, last: str) -> None:
    requests = [replace(request_, location=location) for location in ("absent", last)]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, pickle.dumps(requests).hex()],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        if last == "hang":
            wait_for(lambda: blocks_signals(child), "the child hangs")
        else:
            parent.stdout.readline()
        assert is_running(child)
        parent.kill()
    wait_for(lambda: not is_running(child), "the child has ended")


def blocks_signals(process: int) -> bool:
    """As `hang_in_c` does."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("SigBlk:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1 == 1


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited 60 s in vain until {what}"
        time.sleep(0.01)


PINNED_CHILD = """
import os, sys
from data_pipeline.decoding import sandbox_process

os.sched_setaffinity(0, {int(sys.argv[1])})
os.nice(19)
sandbox_process.main()
"""

BURN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.write(1, b".")
while True: pass
"""


def burn(core: str) -> "subprocess.Popen[bytes]":
    """A process that takes what it can get of the core, from now on."""
    hog = subprocess.Popen([sys.executable, "-c", BURN, core], stdout=subprocess.PIPE)
    assert hog.stdout is not None
    hog.stdout.read(1)
    return hog


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's schedstat")
def test_time_without_a_core_is_not_the_videos(request_: WindowRequest) -> None:
    core = str(max(os.sched_getaffinity(0)))
    hogs: list[subprocess.Popen[bytes]] = []
    with WindowReader((sys.executable, "-c", PINNED_CHILD, core)) as reader:
        # It has loaded what it needs, before others come that leave it a hundredth of the core.
        reader.read(request_, SECONDS)
        child = child_of(reader)
        before = core_times(child)
        try:
            hogs += [burn(core) for _ in range(2)]
            # Enough for what it computes, and less than it takes beside the others.
            clips = reader.read(request_, 0.5)
        finally:
            for hog in hogs:
                hog.kill()
                hog.communicate()
        waited = core_times(child).waited - before.waited
    assert waited > 0
    assert np.array_equal(clips.frames, read_window(request_).frames)


def test_a_wait_that_goes_on_is_a_wait() -> None:
    before = CoreTimes(ran=1.0, waited=2.0, ready=False)
    # A tenth of a second on the core, and in line for it since: Linux has not counted that.
    assert time_waiting(before, CoreTimes(1.1, 2.0, True), 0.5) == pytest.approx(0.4)
    # Counted now, and counted once: it has been asleep since.
    assert time_waiting(before, CoreTimes(1.1, 2.4, False), 0.9) == pytest.approx(0.4)
    # A wait that had begun before the first look, and was counted after it.
    assert time_waiting(before, CoreTimes(1.1, 9.0, False), 0.5) == pytest.approx(0.4)
    # On the core all the time; asleep all the time.
    assert time_waiting(before, CoreTimes(1.5, 2.0, True), 0.5) == 0
    assert time_waiting(before, before, 0.5) == 0


def test_a_process_that_is_gone_waits_for_no_core() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert core_times(child.pid) == (0.0, 0.0, False)
