"""A real S3 server in this process, on a free port of the loopback interface; nothing leaves it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs


class S3Server(NamedTuple):
    """Where the server listens."""

    address: str
    """Host and port."""

    @property
    def options(self) -> str:
        """What a location ends in that names this server itself."""
        return f"?endpoint_override={self.address}&scheme=http"

    def put(self, path: str, content: bytes) -> None:
        """Store an object at `bucket/key`; the bucket is made."""
        store = fs.S3FileSystem(
            endpoint_override=self.address,
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )
        store.create_dir(path.split("/")[0])
        with store.open_output_stream(path) as stream:
            stream.write(content)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server that lives as long as the context."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        # Without it, a client asks a cloud that is not there who it is.
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            yield S3Server(f"{host}:{port}")
        finally:
            server.stop()
