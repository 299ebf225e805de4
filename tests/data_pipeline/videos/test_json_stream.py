"""JSON in pieces: the same values and the same faults as the standard library finds in one."""

import json
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from itertools import islice
from typing import Any

import pytest

from data_pipeline.videos.json_stream import JsonStream, JsonStreamError

VALUES = [
    "{}",
    "[]",
    " [ ] \n",
    "-0.5e+10",
    "12345678901234567890123",
    "[1.5, 1e5, 1E-5, -1, 0, 10, 100, 2.50]",
    '{"duration": NaN, "low": -Infinity, "high": Infinity}',
    '{"a": [true, false, null, {"b": {}}], "c": [[], [[]]], "": ""}',
    '["\\u00e4 \\ud83d\\ude97 \\" \\\\ \\/ \\n", "ä 🚗 日本"]',
    '\n{\r\n\t"list" :\n [ {"path" : "a.mp4"} ,\n {"path":"b.mp4"} ] }\n\n',
]
FAULTS = [
    "",
    "  \n ",
    "{",
    '{"list": [}',
    '{"list":\n [{"path": "a"},]}',
    '{"list":\n [{"path": "a"}\n\n  {"path": "b"}]}',
    '{"list" [1]}',
    '{"list": 1 "total": 2}',
    '{"list": [1, 2',
    '{"list": [1, 2]',
    '{"list": ["ab',
    '{"list": [tru]}',
    '{"list": [1.]}',
    '{"list": [-]}',
    '{"list": ["\\x"]}',
    '{"list": ["a\tb"]}',
    "{list: 1}",
    '{"a": 1, }',
    '{"a": 1} x',
    '[{"a": {"b": nope}}]',
    "'a'",
]
CHUNKS = [1, 2, 3, 5, 7, 16, 1000]


def walk(stream: JsonStream) -> Any:
    """A value by the methods that enter objects and lists, as far down as they go."""
    match stream.peek():
        case "{":
            return {key: walk(stream) for key in stream.members()}
        case "[":
            return [walk(stream) for _ in stream.elements()]
        case _:
            return stream.value()


def read_whole(document: bytes, chunk: int, read: Callable[[JsonStream], Any]) -> Any:
    stream = JsonStream(BytesIO(document), chunk)
    value = read(stream)
    stream.end()
    return value


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("text", VALUES)
def test_every_value_in_chunks_of_every_size(text: str, chunk: int, mark: str) -> None:
    expected = json.dumps(json.loads(text))
    document = (mark + text).encode()
    for read in (walk, JsonStream.value):
        assert json.dumps(read_whole(document, chunk, read)) == expected
    read_whole(document, chunk, JsonStream.skip)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("text", FAULTS)
def test_every_fault_is_where_the_standard_library_sees_it(text: str, chunk: int) -> None:
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    fault = expected.value
    for read in (walk, JsonStream.skip, JsonStream.value):
        with pytest.raises(JsonStreamError) as raised:
            read_whole(text.encode(), chunk, read)
        place = f"{fault.msg} at line {fault.lineno}, column {fault.colno}"
        assert str(raised.value) == place


@pytest.mark.parametrize("chunk", CHUNKS)
def test_bytes_that_are_no_text_are_counted_from_the_start(chunk: int) -> None:
    for document, place in [
        (b'["\xc3\xa4", "\xff"]', 8),
        (b'["abc\xc3', 5),
        (b'"\xc3\xa4"\xfe', 4),
    ]:
        with pytest.raises(JsonStreamError, match=f"byte {place} is not UTF-8"):
            read_whole(document, chunk, JsonStream.skip)


@pytest.mark.parametrize("read", [JsonStream.value, JsonStream.skip])
def test_nesting_has_an_end(read: Callable[[JsonStream], object]) -> None:
    with pytest.raises(JsonStreamError, match="Nested too deeply at line 1"):
        read(JsonStream(BytesIO(b"[" * 100_000)))


class LongDocument:
    """A JSON document that is made while it is read."""

    def __init__(self, start: str, part: str, repeats: int, end: str) -> None:
        self.parts = iter([start, *([part] * repeats), end])
        self.bytes = self.reads = 0

    def read(self, size: int, /) -> bytes:
        chunk = "".join(islice(self.parts, size // 100))
        self.bytes += len(chunk)
        self.reads += 1
        return chunk.encode()


@pytest.mark.parametrize("skipped", [True, False])
def test_memory_does_not_grow_with_the_document(skipped: bool) -> None:
    entry = '{"path": "videos/clip.mp4", "caption": "' + 60 * "x" + '"}, '
    document = LongDocument('{"list": [', entry, 60_000, "{}]}")
    tracemalloc.start()
    try:
        stream = JsonStream(document, chunk_bytes=1 << 16)
        for _ in stream.members():
            if skipped:
                stream.skip()
            else:
                assert sum(len(stream.value()) for _ in stream.elements()) == 120_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert document.bytes > 5_000_000
    assert peak < 1_500_000


def test_a_value_without_an_end_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.videos.json_stream.MAX_VALUE_LENGTH", 10_000)
    document = LongDocument('{"list": \n["', "x" * 100, 10_000, '"]}')
    stream = JsonStream(document, chunk_bytes=2000)
    with pytest.raises(JsonStreamError, match="without an end starts at line 2, column 2"):
        stream.skip()
    assert document.bytes < 100_000


def test_a_fault_is_told_when_it_is_met() -> None:
    document = LongDocument('[{"path": x},', "1" * 98 + ", ", 10_000, "1]")
    stream = JsonStream(document, chunk_bytes=2000)
    with pytest.raises(JsonStreamError, match="Expecting value at line 1, column 11"):
        stream.value()
    assert document.bytes < 10_000


def test_a_long_value_takes_few_reads() -> None:
    document = LongDocument('"', "x" * 100, 10_000, '"')
    assert len(JsonStream(document, chunk_bytes=1000).value()) == 1_000_000
    # Each as long as all before.
    assert document.reads < 20
