"""Reads videos in a child process, which a broken file may hang or crash.

A process can neither stop a decoder that hangs inside FFmpeg nor survive one that crashes. So a
child process (`sandbox_process`) reads the windows, or whole videos, and is killed and replaced
when necessary.
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
from data_pipeline.decoding.cores import core_times, time_waiting
from data_pipeline.decoding.damage import LostFrames
from data_pipeline.decoding.sandbox_process import (
    BUG,
    CLIPS,
    INTERLACED_CLIPS,
    LOST,
    PIECE,
    REPLY,
    REQUEST,
    TRANSIENT,
    WHOLE,
)
from data_pipeline.decoding.whole_video import WholeRequest, WholeVideo, without_gaps
from data_pipeline.decoding.window import WindowClips, WindowRequest
from data_pipeline.errors import TransientVideoError, UnusableVideoError

COMMAND = (sys.executable, "-P", "-m", "data_pipeline.decoding.sandbox_process")
"""Starts a child; -P keeps the working directory out of its import path."""

MIN_SECONDS_LEFT = 0.05
"""A time limit has passed when less than this is left. Linux counts in ticks of up to 0.01 s."""

STOP_SECONDS = 5.0
"""How long to wait for a killed child. One that waits for a dead file server ends later."""

READS_PER_CHILD = 2000
"""Windows until a child is replaced: each one fragments a few kB of FFmpeg's memory."""

T = TypeVar("T")

EXTERNAL_SIGNALS = (signal.SIGKILL, signal.SIGTERM)
"""Signals that come from outside, as from the kernel when memory is short, not from a crash."""


class TimedOutError(TransientVideoError):
    """The clips of a video did not come within the time limit."""


class CrashedError(UnusableVideoError):
    """The decoder's process crashed at a video."""


class KilledError(TransientVideoError):
    """The decoder's process was killed from outside, again and again."""


MAX_RETRIES: dict[type[UnusableVideoError], int] = {CrashedError: 1, KilledError: 4}
"""How often a video is read again after such a death. An outside kill has nothing to do with the
video, and may hit the child of the second read too."""


def retry_dead_child(read: Callable[[], T]) -> T:
    """The result of `read`, which is called again, up to `MAX_RETRIES`, when its child dies.

    Raises the last call's error.
    """
    left = dict(MAX_RETRIES)
    while True:
        try:
            return read()
        except (CrashedError, KilledError) as error:
            if not left[type(error)]:
                raise
            left[type(error)] -= 1


class WindowReader:
    """Reads windows in a child process; a context manager.

    Only the thread of the first read may use it; the child ends with that thread.
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
        """`read_window(request)`, within a time limit. The child's wait for a core does not count,
        since a busy machine is not the video's fault. See `retry_dead_child` for its death.

        Raises UnusableVideoError if the video cannot give the clips, crashes the decoder or needs
        too much memory; TimedOutError after the time limit; KilledError if every child was killed;
        RuntimeError for a fault of the program.
        """
        return retry_dead_child(lambda: self._read(request, seconds))

    def read_whole(
        self, request: WholeRequest, seconds: float
    ) -> tuple[WholeVideo, Generator[Frames]]:
        """`plan_whole(request)` and `whole_frames`; see `read_kept`."""
        video, items = self.read_kept(request, seconds)
        return video, without_gaps(items)

    def read_kept(
        self, request: WholeRequest, seconds: float
    ) -> tuple[WholeVideo, Generator[Frames | LostFrames]]:
        """`plan_whole(request)` and `kept_frames`, within a time limit for each piece.

        The child waits while the caller works on a piece; closing the generator early ends it.
        Both raise what `read` raises. Nothing is retried, since pieces have been handed out.
        """
        replies = self._whole(request, seconds)
        video = next(replies)
        assert isinstance(video, WholeVideo)
        return video, replies  # type: ignore[return-value]

    def _whole(
        self, request: WholeRequest, seconds: float
    ) -> Generator[WholeVideo | Frames | LostFrames]:
        with self._send(request, seconds, "frame") as pipes:
            _, _, length = _receive_header(pipes, request, WHOLE)
            video: WholeVideo = pickle.loads(pipes.receive(bytearray(length)))
            yield video
            left = video.frames
            while left:
                # The caller's time between two pieces does not count.
                pipes.restart_limit(seconds)
                kind, number, length = _receive_header(pipes, request, PIECE, LOST)
                left -= number
                if kind == LOST:
                    yield pickle.loads(pipes.receive(bytearray(length)))
                    continue
                piece = np.empty((number, 3, video.height, video.width), np.uint8)
                pipes.receive(piece.reshape(-1).data)
                yield piece

    def _read(self, request: WindowRequest, seconds: float) -> WindowClips:
        with self._send(request, seconds, "clip") as pipes:
            kind, decoded, _ = _receive_header(pipes, request, CLIPS, INTERLACED_CLIPS)
            frames = np.empty(request.shape, np.uint8)
            pipes.receive(frames.reshape(-1).data)
        return WindowClips(frames, decoded, kind == INTERLACED_CLIPS)

    @contextmanager
    def _send(
        self, request: WindowRequest | WholeRequest, seconds: float, wanted: str
    ) -> Iterator["_Pipes"]:
        """Send a request. The child is killed unless the caller reads its answer to the end."""
        dead = self._child is not None and self._child.poll() is not None
        if dead or self._answering or self._reads == READS_PER_CHILD:
            self.close()
        if self._child is None:
            self._child, self._reads = self._start(), 0
        self._reads += 1
        child = self._child
        pipes = _Pipes(child, seconds)
        self._answering, answered = True, False
        try:
            body = pickle.dumps(request)
            pipes.send(REQUEST.pack(len(body)) + body)
            yield pipes
            answered = True
        except UnusableVideoError:
            answered = True
            raise
        except TimeoutError:
            raise TimedOutError(
                f"no {wanted} after {seconds:g} s; its decoder was stopped"
            ) from None
        except (EOFError, BrokenPipeError):
            raise _error_of_dead(child) from None
        finally:
            # A generator may be closed so late that another child has taken this one's place.
            if self._child is child:
                self._answering = False
                if not answered:
                    self.close()

    def close(self) -> None:
        """Kill the child. A later read starts another."""
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
            # A process group of its own keeps Ctrl-C from the child; the parent handles it.
            process_group=0,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(filter(None, folders)), "OPENBLAS_NUM_THREADS": "1"},
        )
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        return child


class _Pipes:
    """The two pipes to a child, with a time limit for its answer."""

    def __init__(self, child: subprocess.Popen[bytes], seconds: float) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._requests, self._replies = child.stdin.fileno(), child.stdout.fileno()
        self._pid = child.pid
        self.restart_limit(seconds)

    def restart_limit(self, seconds: float) -> None:
        """Start a new time limit in place of the old one."""
        self._seconds = seconds
        self._began, self._times_before = time.monotonic(), core_times(self._pid)
        self._deadline = self._began + seconds

    def send(self, message: bytes) -> None:
        """Raises TimeoutError, or BrokenPipeError if the child is dead."""
        view = memoryview(message)
        while view:
            self._wait(self._requests, select.POLLOUT)
            view = view[os.write(self._requests, view) :]

    def receive(self, buffer: bytearray | memoryview) -> memoryview:
        """Fill the buffer, and return it. Raises TimeoutError, or EOFError if the child is dead."""
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
            now, times = time.monotonic(), core_times(self._pid)
            waited = time_waiting(self._times_before, times, now - self._began)
            self._deadline = self._began + self._seconds + waited
            if self._deadline - now < MIN_SECONDS_LEFT:
                raise TimeoutError


def _receive_header(
    pipes: _Pipes, request: WindowRequest | WholeRequest, *wanted: bytes
) -> tuple[bytes, int, int]:
    """The next reply's kind, number and length; raises the error that it holds, if any."""
    kind, number, length = REPLY.unpack(pipes.receive(bytearray(REPLY.size)))
    if kind in wanted:
        return kind, number, length
    text = pipes.receive(bytearray(length)).tobytes().decode()
    if kind == BUG:
        raise RuntimeError(f"reading {request.location} failed:\n{text}")
    raise (TransientVideoError if kind == TRANSIENT else UnusableVideoError)(text)


def _error_of_dead(child: subprocess.Popen[bytes]) -> UnusableVideoError | RuntimeError:
    """The error for a child that died: only its own crash by a signal is the video's fault."""
    try:
        code = child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return RuntimeError("the process that reads videos closed its pipes")
    if code >= 0:
        return RuntimeError(f"the process that reads videos ended with exit code {code}")
    number = signal.Signals(-code)
    if number in EXTERNAL_SIGNALS:
        return KilledError(f"its decoder was killed ({number.name}); is memory short?")
    return CrashedError(f"crashed the decoder ({number.name})")
