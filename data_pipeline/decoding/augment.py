"""Crop, scale, mirror and colour jitter: from decoded frames to a uint8 clip.

Crop and scale run in FFmpeg's own scaler before the conversion to RGB, so that only the small
picture is ever converted and copied. The aspect ratio of what is seen never changes.

Y, U, V become R, G, B by the matrix and the range that the file states: BT.601, 709, 2020, ...;
limited or full. A file that states none, HD or not, is taken for BT.601 and limited range, as
FFmpeg does by default. Transfer curves and primaries are left as they are.
"""

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from data_pipeline.crops import crop_box
from data_pipeline.errors import UnusableVideoError
from data_pipeline.plan import ClipPlan

Frames = NDArray[np.uint8]

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of R, G and B in grey (BT.601)."""

RGB_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""Grey, and the plane of colour in which a change of hue is a rotation."""

UNSPECIFIED = 2
"""FFmpeg's number for a colour matrix, primaries or transfer curve that the file leaves open."""

RESERVED = 3
"""One that the standard leaves undefined: some cameras write it and mean nothing by it."""

MARGIN = 16
"""Pixels about a crop of the clip's own size that are converted with it: the colours of a pixel
depend on those of its neighbours, which have half the resolution."""

MATRICES = frozenset({0, 1, UNSPECIFIED, 4, 5, 6, 7, 9})
"""Those that the scaler knows (ITU-T H.273): RGB itself, BT.709, FCC, 601, 240M and 2020."""


class ClipMaker:
    """Makes a clip of decoded frames, which may come one by one and in any order."""

    is_interlaced: bool
    """Whether a frame so far was of two half-pictures of different times."""

    def __init__(
        self,
        plan: ClipPlan,
        clip: Frames,
        pixel_aspect: float = 1.0,
        deinterlace: bool = False,
    ) -> None:
        """Fill `clip`, uint8 [T, C, H, W], from frames with pixels of the given aspect ratio.

        deinterlace: make whole frames of interlaced ones: their even lines, enlarged to both.
        """
        self._plan = plan
        self._clip = clip
        self._pixel_aspect = pixel_aspect
        self._deinterlace = deinterlace
        self._graphs: dict[bool, Graph] = {}
        self._source = ("", 0, 0)
        self.is_interlaced = False

    def put(self, place: int, frame: VideoFrame) -> None:
        """Crop, scale and mirror `frame` to be the clip's frame `place`.

        Raises UnusableVideoError where the frames differ in size or format, or their colours
        cannot be converted.
        """
        settle_colours(frame)
        source = (frame.format.name, frame.width, frame.height)
        if not self._graphs:
            self._source = source
        if source != self._source:
            raise UnusableVideoError("changes its frame size or pixel format within a clip")
        self.is_interlaced |= frame.interlaced_frame
        combed = frame.interlaced_frame and self._deinterlace
        graph = self._graphs.get(combed)
        if graph is None:
            graph = self._graphs[combed] = self._build_graph(frame, combed)
        graph.vpush(frame)
        picture = graph.vpull()
        height, width = self._clip.shape[2:]
        # The planes of FFmpeg's planar RGB are G, B and R.
        for channel, plane in zip((1, 2, 0), picture.planes, strict=True):
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
            self._clip[place, channel] = rows[:, :width]

    def finish(self) -> None:
        """Jitter the colours, once all frames are there."""
        jitter_colours(self._clip, self._plan)

    def _build_graph(self, frame: VideoFrame, combed: bool) -> Graph:
        """A graph from frames like this one to small upright pictures, in planar RGB.

        The crop is taken from the frame as it lies in the file, and only the small picture is
        turned.
        """
        # Against the clock, as it takes to put the frame upright.
        turns = round(frame.rotation / 90) % 4
        size, aspect = (frame.height, frame.width), self._pixel_aspect
        height, width = self._clip.shape[2:]
        if turns % 2:
            size, aspect = (frame.width, frame.height), 1 / aspect
        plan = self._plan
        box = crop_box(size, (height, width), plan.crop, (plan.crop_x, plan.crop_y), aspect)
        for _ in range(-turns % 4):
            box, size = box.turned(size), (size[1], size[0])
        if turns % 2:
            height, width = width, height

        graph = Graph()
        graph.threads = 1
        # Averaging when shrinking; `area` would repeat pixels when enlarging. The other flags
        # make the result the same on every CPU and keep colour at full resolution.
        method = "area" if box.height >= height else "bicubic"
        is_native = plan.crop.measure != "part" and (box.height, box.width) == (height, width)
        # The video's own pixels are cut out after the conversion, with their neighbours in it.
        read = box.with_margin(MARGIN, (frame.height, frame.width)) if is_native else box
        if is_native:
            height, width = read.height, read.width
        whole = f"{frame.width}:{frame.height}:flags=bicubic+accurate_rnd+bitexact"
        inner = f"{box.width}:{box.height}:{box.x - read.x}:{box.y - read.y}:exact=1"
        nodes = [
            graph.add(
                "buffer",
                f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
                f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}:time_base=1/1",
            ),
            *(graph.add(*step) for step in (("field", "top"), ("scale", whole)) if combed),
            graph.add("crop", f"{read.width}:{read.height}:{read.x}:{read.y}"),
            graph.add(
                "scale", f"{width}:{height}:flags={method}+full_chroma_int+accurate_rnd+bitexact"
            ),
            graph.add("format", "gbrp"),
            *(graph.add("crop", inner) for _ in range(is_native)),
            *(graph.add("transpose", "cclock") for _ in range(turns)),
            *(graph.add("hflip") for _ in range(self._plan.flip)),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        return graph


def settle_colours(frame: VideoFrame) -> None:
    """Leave of a frame's colour tags what the scaler needs and knows.

    Raises UnusableVideoError where it does not know the matrix.
    """
    if frame.colorspace == RESERVED:
        frame.colorspace = UNSPECIFIED
    if frame.colorspace not in MATRICES:
        raise UnusableVideoError(f"has colours of a kind that is not known ({frame.colorspace})")
    # These play no part here, and the scaler refuses some of their values.
    frame.color_primaries = frame.color_trc = UNSPECIFIED


def jitter_colours(clip: Frames, plan: ClipPlan) -> None:
    """Brightness, contrast, saturation and hue of a clip, uint8 [T, C, H, W], in place.

    Each of the four is an affine map of the RGB values: saturation and hue scale and turn the
    colour plane and leave grey alone, contrast pivots on the clip's mean grey. So they are
    multiplied out and applied in one pass, rounding once. The pixels see only operations that
    IEEE 754 rounds exactly: a product of matrices would not be the same on every CPU.
    """
    if (plan.brightness, plan.contrast, plan.saturation, plan.hue) == (1.0, 1.0, 1.0, 0.0):
        return
    frames, channels, height, width = clip.shape
    # Sums of 32 bits hold for pictures of up to 2**24 pixels.
    sums = clip.reshape(frames, channels, height * width).sum(axis=2, dtype=np.uint32)
    mean_grey = plan.brightness * float(LUMA @ sums.mean(axis=0)) / (height * width)
    matrix = plan.contrast * plan.brightness * _colour_matrix(plan.saturation, plan.hue)
    columns = matrix.astype(np.float32).T[:, :, None, None]
    offset = np.float32((1.0 - plan.contrast) * mean_grey + 0.5)

    # One frame at a time stays in the CPU's cache.
    values, product, total = np.empty((3, channels, height, width), np.float32)
    for picture in clip:
        values[:] = picture
        np.multiply(values[0], columns[0], out=total)
        for channel in (1, 2):
            total += np.multiply(values[channel], columns[channel], out=product)
        total += offset
        picture[:] = np.clip(total, 0, 255, out=total)


def _colour_matrix(saturation: float, hue: float) -> NDArray[np.float64]:
    """RGB to RGB: the colour plane scaled by `saturation` and turned by `hue` turns."""
    angle = 2 * np.pi * hue
    cosine, sine = saturation * np.cos(angle), saturation * np.sin(angle)
    # From I to Q is clockwise in the circle of hues, on which red is before yellow and green.
    turn = np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]])
    matrix: NDArray[np.float64] = np.linalg.inv(RGB_TO_YIQ) @ turn @ RGB_TO_YIQ
    return matrix
