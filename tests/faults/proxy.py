"""A TCP proxy before a server of the loopback interface, which can refuse and hang."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PIECE = 2**16


class Proxy:
    """Passes connections on to `target` (host, port); use `proxy_to`.

    What hangs stays open and silent: nothing is read, nothing answered, until it passes again.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._passing = threading.Event()
        self._passing.set()
        self._refusing = False
        self._closed = False
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def pass_on(self) -> None:
        """As if the proxy were not there."""
        self._refusing = False
        self._passing.set()

    def refuse(self) -> None:
        """Close all connections, and every new one at once."""
        self._refusing = True
        self._passing.set()
        self._drop()

    def hang(self) -> None:
        """Take connections and what they send, and never answer."""
        self._refusing = False
        self._passing.clear()

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        self.refuse()

    def _drop(self) -> None:
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            self._open.clear()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        self._passing.wait()
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        with self._lock:
            self._open.add(server)
        back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
        back.start()
        self._copy(client, server)
        back.join()
        for connection in (client, server):
            connection.close()
            with self._lock:
                self._open.discard(connection)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE):
                self._passing.wait()
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def proxy_to(address: str) -> Iterator[Proxy]:
    """A proxy to `host:port`, passing, that is closed at the end."""
    host, port = address.split(":")
    proxy = Proxy((host, int(port)))
    try:
        yield proxy
    finally:
        proxy.close()
