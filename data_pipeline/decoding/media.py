"""Opening a video file: its container, its video stream, and a decoder for it."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import av
from av.container import Flags

from data_pipeline.errors import TransientVideoError, UnusableVideoError
from data_pipeline.videos.storage import NotAFileError

BEST = -1
"""In place of a stream's number: the one that FFmpeg takes by default."""

MAX_PIXELS = 2**26
"""Largest frame, twice 8K. A damaged header may claim any size."""


def open_video(
    media: str | io.IOBase, stream: int = BEST
) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a path, or a seekable file, at its first frame. The caller closes the container.

    stream: which of the video streams, from 0, or `BEST`.

    Raises UnusableVideoError if the file is missing, has no video stream, or one that cannot or
    should not be decoded.
    """
    if not isinstance(media, str):
        media.seek(0)
    with translate_errors("cannot be opened"):
        container = av.open(
            media,
            options={"max_pixels": str(MAX_PIXELS)},
            # Titles in a broken encoding are no reason to refuse a video.
            metadata_errors="replace",
        )
        try:
            chosen = _video_stream(container, stream)
            # Some decoders ignore changes of `skip_frame` unless opened first.
            chosen.codec_context.open()
        except (UnusableVideoError, av.FFmpegError):
            container.close()
            raise
    # For files without timestamps FFmpeg invents some, which are wrong if the order of display is
    # not that of decoding.
    container.flags &= ~Flags.gen_pts.value
    return container, chosen


@contextmanager
def translate_errors(fault: str) -> Iterator[None]:
    """Raise FFmpeg's and the file system's errors as `UnusableVideoError`, with `fault` as text."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnusableVideoError("missing") from error
    except NotAFileError as error:
        raise UnusableVideoError(str(error)) from error
    except MemoryError as error:
        raise UnusableVideoError("needs too much memory") from error
    except av.FFmpegError as error:
        raise UnusableVideoError(f"{fault}: {error.strerror or error}") from error
    except OSError as error:
        raise TransientVideoError(f"{fault}: {error.strerror or error}") from error


def _video_stream(container: av.container.InputContainer, number: int) -> av.VideoStream:
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not streams:
        raise UnusableVideoError("has no video stream")
    if number == BEST:
        # As `av_find_best_stream` says: by its disposition, then by the length and rate of what is
        # in it. It may name a picture of the cover, which is no video.
        best = container.streams.best("video")
        stream = next((one for one in streams if best and one.index == best.index), streams[0])
    elif number < len(streams):
        stream = streams[number]
    else:
        raise UnusableVideoError(f"has {len(streams)} video streams, and none of number {number}")
    context = stream.codec_context
    if context is None:
        raise UnusableVideoError("has no codec that is known")
    # FFmpeg sets a size to 0 that is beyond `max_pixels`.
    width, height = context.width, context.height
    if min(width, height) <= 0 or width * height > MAX_PIXELS:
        raise UnusableVideoError(f"has frames of no size, or of more than {MAX_PIXELS} pixels")
    if not (stream.average_rate or stream.base_rate or stream.guessed_rate):
        raise UnusableVideoError("has no frame rate")
    # Tasks run in parallel; a decoder's own threads would use CPUs that the scheduler gave away.
    context.thread_type = "NONE"
    context.thread_count = 1
    context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream
