"""An S3 object as a file to seek in."""

import io
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

BLOCK_BYTES = 512 * 1024
CACHED_BLOCKS = 8
MAX_BLOCKS_AHEAD = 8
"""Blocks that one request may ask for. No more than are cached, or the first would be lost."""


class RangeReader(io.RawIOBase):
    """An S3 object as a seekable file, fetched in blocks as they are needed.

    The last blocks are kept. Who reads on where the last request ended gets twice as many
    blocks by the next one, so that a long read takes few requests and a jump fetches little.
    """

    requests: int
    """Requests sent so far."""

    bytes_read: int
    """Bytes fetched so far."""

    def __init__(self, name: str, file: Any) -> None:
        """`file` is an open file of PyArrow; opening it took one request."""
        self.name = name
        self._file = file
        self._size: int = file.size()
        self.requests, self.bytes_read = 1, 0
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next_block, self._blocks_ahead = -1, 1

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, from the start, the position or the end; nothing is fetched."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"position {start + offset} is before the start of {self.name}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: "Buffer") -> int:
        """Fill the buffer up to the next border of a block.

        Raises OSError where S3 does not answer or the object has become shorter.
        """
        if self.closed:
            raise ValueError(f"{self.name} is closed")
        target = memoryview(buffer).cast("B")
        if self._position >= self._size:
            return 0
        number, offset = divmod(self._position, BLOCK_BYTES)
        part = self._block(number)[offset : offset + len(target)]
        target[: len(part)] = part
        self._position += len(part)
        return len(part)

    def close(self) -> None:
        """Give up the connection and the blocks."""
        super().close()
        self._blocks.clear()
        self._file.close()

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            self._fetch(number)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _fetch(self, number: int) -> None:
        reads_on = number == self._next_block
        self._blocks_ahead = min(2 * self._blocks_ahead, MAX_BLOCKS_AHEAD) if reads_on else 1
        start = number * BLOCK_BYTES
        length = min(self._blocks_ahead * BLOCK_BYTES, self._size - start)
        data = self._file.read_at(length, start)
        self.requests += 1
        self.bytes_read += len(data)
        if len(data) < length:
            raise OSError(f"{self.name} ends before its {self._size} bytes")
        for offset in range(0, length, BLOCK_BYTES):
            block = data[offset : offset + BLOCK_BYTES]
            self._blocks[number + offset // BLOCK_BYTES] = block
        while len(self._blocks) > CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        self._next_block = number + self._blocks_ahead
