"""JSON read piece by piece, in bounded memory, by the rules of the standard library.

Libraries that stream JSON refuse what `json.dump` writes for a missing number (NaN) and do not
say where a document is broken. Here `json` itself decodes each value; only the way through the
outer objects and lists is walked by hand.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Protocol

CHUNK_BYTES = 1 << 20
MAX_VALUE_LENGTH = 1 << 26
"""Characters of the longest value that is taken: a lost quotation mark would read on for ever."""

LONGEST_WORD = len("-Infinity")
SPACE = re.compile(r"[ \t\n\r]*")
TOO_DEEP = "Nested too deeply"
BYTE_ORDER_MARK = "\ufeff"

_decode = json.JSONDecoder().raw_decode


class JsonStreamError(ValueError):
    """The bytes are not JSON; the text says why and where."""


class ByteStream(Protocol):
    """A binary file that can be read forwards."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end only."""
        ...


class JsonStream:
    """A cursor over one UTF-8 JSON document. Every method raises JsonStreamError.

    A document is read by walking it: `peek` looks at the next value; `value` and `skip` move
    past it; `members` and `elements` enter it, and their caller moves past what is inside.
    """

    def __init__(self, stream: ByteStream, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._stream = stream
        self._chunk_bytes = chunk_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._bytes_read = 0
        self._text = ""
        self._position = 0
        # Where the kept text starts in the document, both counted from 1.
        self._line, self._column = 1, 1
        self._ended = False
        while not self._text and not self._ended:
            self._extend()
        self._text = self._text.removeprefix(BYTE_ORDER_MARK)

    def peek(self) -> str:
        """The first character of what comes next, white space aside; empty at the end."""
        while True:
            match = SPACE.match(self._text, self._position)
            if match is not None:
                self._position = match.end()
            if self._position < len(self._text):
                return self._text[self._position]
            if self._ended:
                return ""
            self._extend()

    def value(self) -> Any:
        """The next value as Python's own types."""
        self.peek()
        while True:
            try:
                value, end = _decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._ended or not self._may_be_cut(error):
                    raise self._failure(error.msg, error.pos) from error
            except RecursionError as error:
                raise self._failure(TOO_DEEP, self._position) from error
            else:
                # What looks like the end of a number may go on: "1" as "1.5", "1e+" as "1e+5".
                if self._ended or end + len("e+") < len(self._text):
                    self._position = end
                    return value
            if len(self._text) - self._position > MAX_VALUE_LENGTH:
                raise self._failure("A value without an end starts", self._position)
            self._extend()

    def skip(self) -> None:
        """Move past the next value, however long it is."""
        symbol = self.peek()
        try:
            if symbol == "{":
                for _ in self.members():
                    self.skip()
            elif symbol == "[":
                for _ in self.elements():
                    self.skip()
            else:
                self.value()
        except RecursionError as error:
            raise self._failure(TOO_DEEP, self._position) from error

    def members(self) -> Iterator[str]:
        """Enter an object: its keys. The caller moves past each value before the next key."""
        self._take("{")
        if self.peek() == "}":
            self._position += 1
            return
        while True:
            if self.peek() != '"':
                expected = "Expecting property name enclosed in double quotes"
                raise self._failure(expected, self._position)
            key: str = self.value()
            self._take(":")
            yield key
            if self._closes("}"):
                return

    def elements(self) -> Iterator[None]:
        """Enter a list: once per element. The caller moves past each before the next."""
        self._take("[")
        if self.peek() == "]":
            self._position += 1
            return
        while True:
            yield
            if self._closes("]"):
                return

    def end(self) -> None:
        """Nothing but white space may follow."""
        if self.peek():
            raise self._failure("Extra data", self._position)

    def _take(self, symbol: str) -> None:
        if self.peek() != symbol:
            raise self._failure(f"Expecting '{symbol}' delimiter", self._position)
        self._position += 1

    def _closes(self, bracket: str) -> bool:
        """Move past a comma (False) or the closing bracket (True)."""
        symbol = self.peek()
        if symbol not in (",", bracket):
            raise self._failure("Expecting ',' delimiter", self._position)
        self._position += 1
        return symbol == bracket

    def _extend(self) -> None:
        """Forget what was passed and read on; a long value doubles what is read each time."""
        self._line, self._column = self._place(self._position)
        self._text = self._text[self._position :]
        self._position = 0
        pending = len(self._decoder.getstate()[0])
        chunk = self._stream.read(max(self._chunk_bytes, len(self._text)))
        self._ended = not chunk
        try:
            self._text += self._decoder.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            place = self._bytes_read - pending + error.start
            raise JsonStreamError(f"byte {place} is not UTF-8 text") from error
        self._bytes_read += len(chunk)

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether more text could mend this: the fault is a missing end, or near the end."""
        if error.msg.startswith("Unterminated string"):
            return True
        return error.pos > len(self._text) - LONGEST_WORD

    def _place(self, position: int) -> tuple[int, int]:
        """Line and column in the document of a position in the kept text."""
        breaks = self._text.count("\n", 0, position)
        if breaks:
            return self._line + breaks, position - self._text.rindex("\n", 0, position)
        return self._line, self._column + position

    def _failure(self, reason: str, position: int) -> JsonStreamError:
        line, column = self._place(position)
        return JsonStreamError(f"{reason} at line {line}, column {column}")
