"""The child process of a `sandbox.WindowReader`, which reads videos and may hang or crash.

It imports little, starts fast and keeps no state. Its standard input gets requests: a length and a
pickle. Its standard output gives replies: a kind, a number and a length, then that many bytes of
clips or of a text. A whole video has many replies: its description, and pieces of its frames, or
what is lost in place of some.
"""

import ctypes
import os
import pickle
import resource
import signal
import struct
import sys
import traceback

import numpy as np

from data_pipeline.decoding.whole_video import WholeRequest, kept_frames, plan_whole
from data_pipeline.decoding.window import WindowRequest, read_window
from data_pipeline.errors import TransientVideoError, UnusableVideoError

REQUEST = struct.Struct("<q")
REPLY = struct.Struct("<cqq")
CLIPS, INTERLACED_CLIPS, WHOLE, PIECE, LOST = b"C", b"I", b"W", b"P", b"L"
UNUSABLE, TRANSIENT, BUG = b"U", b"M", b"B"
"""Kinds of replies. The number is that of decoded frames for clips, that of frames for a piece of
a whole video or what is lost of it, and 0 for others."""

MEMORY_BYTES = 8 * 2**30
"""Address space of the child; reference frames of the largest size need most of it."""

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer requests until there are no more."""
    _limit_resources()
    requests, replies = sys.stdin.buffer, os.dup(1)
    # Anything that is printed goes to standard error, not between the replies.
    os.dup2(2, 1)
    sys.excepthook = lambda *error: _reply(
        replies, BUG, 0, "".join(traceback.format_exception(*error)).encode()
    )
    while header := requests.read(REQUEST.size):
        request = pickle.loads(requests.read(*REQUEST.unpack(header)))
        try:
            _answer(replies, request)
        except TransientVideoError as error:
            _reply(replies, TRANSIENT, 0, str(error).encode())
        except UnusableVideoError as error:
            _reply(replies, UNUSABLE, 0, str(error).encode())
        except MemoryError:
            _reply(replies, UNUSABLE, 0, b"needs too much memory")


def _answer(pipe: int, request: WindowRequest | WholeRequest) -> None:
    if isinstance(request, WindowRequest):
        clips = read_window(request)
        kind = INTERLACED_CLIPS if clips.is_interlaced else CLIPS
        _reply(pipe, kind, clips.decoded, clips.frames.reshape(-1).data)
        return
    video = plan_whole(request)
    _reply(pipe, WHOLE, 0, pickle.dumps(video))
    for item in kept_frames(request, video):
        if isinstance(item, np.ndarray):
            _reply(pipe, PIECE, len(item), item.reshape(-1).data)
        else:
            _reply(pipe, LOST, item.end - item.first, pickle.dumps(item))


def _reply(pipe: int, kind: bytes, number: int, body: bytes | memoryview) -> None:
    for part in (REPLY.pack(kind, number, len(body)), body):
        view = memoryview(part)
        while view:
            view = view[os.write(pipe, view) :]


def _limit_resources() -> None:
    """Limit memory and core dumps, and die with the parent even while FFmpeg hangs."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
