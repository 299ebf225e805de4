"""What stores and Ray say, in plain words."""

from __future__ import annotations

import re

_STORE = (
    (
        r"NO_SUCH_BUCKET|NoSuchBucket|Bucket '?[^']*'? not found|bucket does not exist",
        "there is no such bucket",
    ),
    (
        r"ACCESS_DENIED|AccessDenied|HTTP (?:response code|status) 403|Forbidden",
        "access is denied",
    ),
    (
        r"INVALID_ACCESS_KEY|InvalidAccessKeyId|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch"
        r"|ExpiredToken|No AWS Credentials|EC2MetadataClient",
        "the credentials are missing, wrong or expired",
    ),
    (
        r"NETWORK_CONNECTION|curlCode: (?:6|7|28)\b|Couldn't connect|Could not resolve"
        r"|Timeout was reached",
        "the store does not answer",
    ),
)


def plain_error(text: str) -> str:
    """An error in one line, begun with what it comes to, where that is known."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    short = (lines[-1] if "Traceback" in text else " ".join(lines)) if lines else "no reason given"
    short = short[:400]
    for pattern, words in _STORE:
        if re.search(pattern, text):
            return f"{words} ({short})"
    return short


def plain_connection(text: str) -> str:
    """What the system said of a connection, without the layers that handed it on."""
    found = re.search(r"\[Errno -?\d+\] [\w ]+|(?:connect|read) timed out|Read timed out", text)
    return found[0] if found else plain_error(text)
