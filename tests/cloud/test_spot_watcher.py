"""A spot notice of a pretended metadata service becomes a drain."""

import json
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cloud.metadata import Aws, Notice
from cloud.spot_watcher import seconds_left, watch

NOTICE = {"action": "terminate", "time": "2026-03-01T12:02:00Z"}


class Service(BaseHTTPRequestHandler):
    """IMDSv2: without a token of the moment it says nothing."""

    protocol_version = "HTTP/1.1"
    token = "first"
    facts: dict[str, str]
    fails: list[int]
    """Status codes that the next answers have instead."""

    def do_PUT(self) -> None:
        assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
        self._answer(200, self.token) if self.path == "/latest/api/token" else self._answer(404)

    def do_GET(self) -> None:
        if self.fails:
            self._answer(self.fails.pop(0))
        elif self.headers["X-aws-ec2-metadata-token"] != self.token:
            self._answer(401)
        elif self.path in self.facts:
            self._answer(200, self.facts[self.path])
        else:
            self._answer(404)

    def _answer(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent."""


@pytest.fixture
def service() -> Iterator[type[Service]]:
    class Own(Service):
        facts: dict[str, str] = {}  # noqa: RUF012
        fails: list[int] = []  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Own.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    try:
        yield Own
    finally:
        server.shutdown()
        server.server_close()


def machine(service: Any) -> Aws:
    return Aws(service.address)


def announce(service: type[Service]) -> None:
    service.facts["/latest/meta-data/spot/instance-action"] = json.dumps(NOTICE)


def test_facts_of_the_machine(service: type[Service]) -> None:
    service.facts["/latest/meta-data/placement/region"] = "us-west-2"
    assert machine(service).region() == "us-west-2"
    assert machine(service).zone() == ""
    assert machine(service).notice() is None


def test_a_notice_is_read(service: type[Service]) -> None:
    announce(service)
    notice = machine(service).notice()
    assert notice == Notice("terminate", datetime(2026, 3, 1, 12, 2, tzinfo=UTC))


def test_a_token_that_has_run_out_is_replaced(service: type[Service]) -> None:
    own = machine(service)
    assert own.notice() is None
    service.token = "second"
    announce(service)
    assert own.notice() is not None


def test_the_watcher_waits_for_the_notice_and_drains_once(
    service: type[Service], caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            announce(service)

    drained: list[Notice] = []
    watch(machine(service), drained.append, poll_seconds=5, sleep=sleep)
    assert slept == [5, 5, 5]
    assert [notice.action for notice in drained] == ["terminate"]


def test_a_service_in_trouble_is_told_once_and_asked_again(
    service: type[Service], caplog: pytest.LogCaptureFixture
) -> None:
    service.fails += [500, 503]
    announce(service)
    drained: list[Notice] = []
    with caplog.at_level("INFO"):
        watch(machine(service), drained.append, sleep=lambda seconds: None)
    assert len(drained) == 1
    told = [record.getMessage() for record in caplog.records]
    assert sum("no word from the metadata service" in line for line in told) == 1
    assert sum("answers again" in line for line in told) == 1


def test_nonsense_is_no_notice(service: type[Service]) -> None:
    path = "/latest/meta-data/spot/instance-action"
    answers = iter(["<html>", '{"action": "stop"}', json.dumps(NOTICE)])
    service.facts[path] = next(answers)
    drained: list[Notice] = []

    def sleep(seconds: float) -> None:
        service.facts[path] = next(answers)

    watch(machine(service), drained.append, sleep=sleep)
    assert len(drained) == 1


def test_a_drain_that_fails_is_tried_again(
    service: type[Service], caplog: pytest.LogCaptureFixture
) -> None:
    announce(service)
    tries: list[Notice] = []

    def drain(notice: Notice) -> None:
        tries.append(notice)
        if len(tries) < 3:
            raise subprocess.CalledProcessError(1, "ray", stderr="no such node\n")

    watch(machine(service), drain, sleep=lambda seconds: None)
    assert len(tries) == 3
    assert "cannot be drained: no such node" in caplog.text


def test_the_deadline_is_the_clouds() -> None:
    now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    assert seconds_left(Notice("terminate", now + timedelta(seconds=118.6)), now) == 118
    assert seconds_left(Notice("terminate", now - timedelta(seconds=5)), now) == 1
