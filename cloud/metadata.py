"""What a machine of EC2 is told about itself, by the service at 169.254.169.254.

It needs nothing but Python: it runs before anything is installed, and beside training for days.
"""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import datetime

TIMEOUT_SECONDS = 2.0
TOKEN_SECONDS = 21600
"""The longest life that AWS gives a token."""


@dataclass(frozen=True)
class Notice:
    """A machine is about to be taken away."""

    action: str
    """What will be done to it: terminate, stop or hibernate."""

    at: datetime
    """When, with its time zone."""


class Aws:
    """EC2's service, in its second version, which wants a token.

    Every method raises OSError where it does not answer.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    """

    def __init__(self, address: str = "http://169.254.169.254") -> None:
        self._address = address
        self._token = ""

    def notice(self) -> Notice | None:
        """A spot reclaim: about two minutes before, or None. Raises ValueError for nonsense."""
        text = self._get("/latest/meta-data/spot/instance-action")
        if text is None:
            return None
        content = json.loads(text)
        return Notice(content["action"], datetime.fromisoformat(content["time"]))

    def region(self) -> str:
        return self._get("/latest/meta-data/placement/region") or ""

    def zone(self) -> str:
        return self._get("/latest/meta-data/placement/availability-zone") or ""

    def instance(self) -> str:
        """Its id."""
        return self._get("/latest/meta-data/instance-id") or ""

    def _get(self, path: str) -> str | None:
        """None where there is nothing at `path`."""
        for fresh in (False, True):
            if fresh or not self._token:
                seconds = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
                self._token = _read(f"{self._address}/latest/api/token", seconds, "PUT")
            try:
                return _read(self._address + path, {"X-aws-ec2-metadata-token": self._token})
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401 or fresh:
                    raise
        raise AssertionError("the second try returns or raises")


def _read(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers, method=method)
    # A proxy of the environment is for the world outside, not for this address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
        text: bytes = answer.read()
    return text.decode().strip()


if __name__ == "__main__":
    # `metadata.py region`: nothing where the machine is in no cloud.
    with contextlib.suppress(OSError):
        sys.stdout.write(Aws().region())
