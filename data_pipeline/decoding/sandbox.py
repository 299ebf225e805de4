"""Videos read in a process of their own, which a broken file may hang or crash.

Inside of FFmpeg nothing of the same process can stop a decoder that hangs, and nothing outlives
one that crashes. So a child process (`sandbox_process`) reads the windows, or whole videos; it is
killed and replaced where it has to be.
"""

import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from data_pipeline.decoding.augment import Frames
from data_pipeline.decoding.cores import use_of_cores, wait_between
from data_pipeline.decoding.sandbox_process import (
    BUG,
    CLIPS,
    MOMENTARY,
    PIECE,
    REPLY,
    REQUEST,
    WHOLE,
)
from data_pipeline.decoding.whole_video import WholeRequest, WholeVideo
from data_pipeline.decoding.window import WindowClips, WindowRequest
from data_pipeline.errors import MomentaryError, UnusableVideoError

COMMAND = (sys.executable, "-P", "-m", "data_pipeline.decoding.sandbox_process")
"""Starts a child; what the working directory holds plays no part."""

LEAST_LEFT = 0.05
"""Seconds; a time limit of which less is left is over. Linux counts in ticks of up to 0.01 s."""

STOP_SECONDS = 5.0
"""For a killed child to be gone. One that waits for a dead file server goes later."""

READS = 2000
"""Windows until a child is replaced: FFmpeg's memory falls to pieces, a few kB with each."""

T = TypeVar("T")

FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)
"""Signals that no decoder brings upon itself: the kernel sends them where memory is short."""


class TimedOutError(MomentaryError):
    """A video whose clips were not there within the time limit."""


class CrashedError(UnusableVideoError):
    """A video at which the decoder's process was ended by a signal."""


class KilledError(MomentaryError):
    """A video whose decoder was killed from outside, again and again."""


MORE_READS: dict[type[UnusableVideoError], int] = {CrashedError: 1, KilledError: 4}
"""How often a video is read again whose child died so. Who kills does not look at the video, and
may hit the child that has just been started for the second read."""


def outlive_deaths(read: Callable[[], T]) -> T:
    """What `read` returns; where its child dies it is called again, as often as `MORE_READS` says.

    Raises what `read` raises, for the last time.
    """
    left = dict(MORE_READS)
    while True:
        try:
            return read()
        except (CrashedError, KilledError) as error:
            if not left[type(error)]:
                raise
            left[type(error)] -= 1


class WindowReader:
    """Reads windows in a child process; a context manager.

    For use by one thread: that of the first read, with whose end the child ends, too.
    """

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        """`command` starts a child that runs `sandbox_process.main`."""
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._reads = 0
        self._answering = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, request: WindowRequest, seconds: float) -> WindowClips:
        """`read_window(request)`, within a time limit that covers all it takes but the child's wait
        for a core: that a machine is busy says nothing of a video.

        A child that dies is replaced and the window read again: see `outlive_deaths`.

        Raises UnusableVideoError where the video cannot give the clips, crashes the decoder or
        takes it too much memory; TimedOutError where the time is over; KilledError where no
        child was left alone; RuntimeError where the fault is the program's.
        """
        return outlive_deaths(lambda: self._read(request, seconds))

    def read_whole(
        self, request: WholeRequest, seconds: float
    ) -> tuple[WholeVideo, Generator[Frames]]:
        """`plan_whole(request)` and `whole_frames`, within a time limit for each piece.

        The child waits while a piece is worked on; to close the generator early ends it.
        Both may raise what `read` raises; nothing is read twice, since pieces have been given out.
        """
        replies = self._whole(request, seconds)
        video = next(replies)
        assert isinstance(video, WholeVideo)
        return video, replies  # type: ignore[return-value]

    def _whole(self, request: WholeRequest, seconds: float) -> Generator[WholeVideo | Frames]:
        with self._asked(request, seconds, "frame") as link:
            _, length = _answer_of(link, request, WHOLE)
            video: WholeVideo = pickle.loads(link.receive(bytearray(length)))
            yield video
            left = video.frames
            while left:
                # What the receiver did in between is not the video's time.
                link.give(seconds)
                number, _ = _answer_of(link, request, PIECE)
                piece = np.empty((number, 3, video.height, video.width), np.uint8)
                link.receive(piece.reshape(-1).data)
                left -= number
                yield piece

    def _read(self, request: WindowRequest, seconds: float) -> WindowClips:
        with self._asked(request, seconds, "clip") as link:
            decoded, _ = _answer_of(link, request, CLIPS)
            frames = np.empty(request.shape, np.uint8)
            link.receive(frames.reshape(-1).data)
        return WindowClips(frames, decoded)

    @contextmanager
    def _asked(
        self, request: WindowRequest | WholeRequest, seconds: float, wanted: str
    ) -> Iterator["_Link"]:
        """A request sent; the child is ended unless its answer is read to the end."""
        gone = self._child is not None and self._child.poll() is not None
        if gone or self._answering or self._reads == READS:
            self.close()
        if self._child is None:
            self._child, self._reads = self._start(), 0
        self._reads += 1
        child = self._child
        link = _Link(child, seconds)
        self._answering, sound = True, False
        try:
            body = pickle.dumps(request)
            link.send(REQUEST.pack(len(body)) + body)
            yield link
            sound = True
        except UnusableVideoError:
            sound = True
            raise
        except TimeoutError:
            raise TimedOutError(
                f"no {wanted} after {seconds:g} s; its decoder was stopped"
            ) from None
        except (EOFError, BrokenPipeError):
            raise _end_of(child) from None
        finally:
            # An answer that was left unread may be given up when another child is at work.
            if self._child is child:
                self._answering = False
                if not sound:
                    self.close()

    def close(self) -> None:
        """End the child. A later read starts another."""
        child, self._child, self._answering = self._child, None, False
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(STOP_SECONDS)

    def _start(self) -> subprocess.Popen[bytes]:
        folders = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        child = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # Ctrl-C is for the parent to act on.
            process_group=0,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(filter(None, folders)), "OPENBLAS_NUM_THREADS": "1"},
        )
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        return child


class _Link:
    """The two pipes to a child, which has some seconds for its answer."""

    def __init__(self, child: subprocess.Popen[bytes], seconds: float) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._requests, self._replies = child.stdin.fileno(), child.stdout.fileno()
        self._pid = child.pid
        self.give(seconds)

    def give(self, seconds: float) -> None:
        """Start a new limit of so many seconds; the rest of the old one lapses."""
        self._seconds = seconds
        self._began, self._at_first = time.monotonic(), use_of_cores(self._pid)
        self._deadline = self._began + seconds

    def send(self, message: bytes) -> None:
        """Raises TimeoutError, or BrokenPipeError where the child is gone."""
        view = memoryview(message)
        while view:
            self._wait(self._requests, select.POLLOUT)
            view = view[os.write(self._requests, view) :]

    def receive(self, buffer: bytearray | memoryview) -> memoryview:
        """Fill the buffer, and return it. Raises TimeoutError, or EOFError without a child."""
        whole = view = memoryview(buffer)
        while view:
            self._wait(self._replies, select.POLLIN)
            count = os.readv(self._replies, [view])
            if count == 0:
                raise EOFError
            view = view[count:]
        return whole

    def _wait(self, pipe: int, event: int) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        while not poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000):
            now, cores = time.monotonic(), use_of_cores(self._pid)
            waited = wait_between(self._at_first, cores, now - self._began)
            self._deadline = self._began + self._seconds + waited
            if self._deadline - now < LEAST_LEFT:
                raise TimeoutError


def _answer_of(
    link: _Link, request: WindowRequest | WholeRequest, wanted: bytes
) -> tuple[int, int]:
    """The next reply's number and length, if it is of the wanted kind; else what it says."""
    kind, number, length = REPLY.unpack(link.receive(bytearray(REPLY.size)))
    if kind == wanted:
        return number, length
    text = link.receive(bytearray(length)).tobytes().decode()
    if kind == BUG:
        raise RuntimeError(f"reading {request.location} failed:\n{text}")
    raise (MomentaryError if kind == MOMENTARY else UnusableVideoError)(text)


def _end_of(child: subprocess.Popen[bytes]) -> UnusableVideoError | RuntimeError:
    """What a child's unasked end means: only a signal of its own making is the video's fault."""
    try:
        code = child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return RuntimeError("the process that reads videos closed its pipes")
    if code >= 0:
        return RuntimeError(f"the process that reads videos ended with exit code {code}")
    number = signal.Signals(-code)
    if number in FROM_OUTSIDE:
        return KilledError(f"its decoder was killed ({number.name}); is memory short?")
    return CrashedError(f"crashed the decoder ({number.name})")
