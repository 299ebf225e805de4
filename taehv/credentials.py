"""Removes credentials from addresses that are written, shown or sent.

An address has its credentials before the host (`http://user:password@host`,
`s3://KEY:SECRET@bucket/run`) or among its options (`?password=...`, `?secret_key=...`). A run keeps
the whole address in memory, to open it; only the rest leaves the process.
"""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]*://"
_ADDRESS = re.compile(rf"({_SCHEME})(.*)", re.DOTALL)
_IN_TEXT = re.compile(rf'{_SCHEME}[^\s"<>`]*')

_HOST = r"(\[[^\]]*\]|[^:\[\]]*)"
_SERVER = re.compile(rf"{_HOST}(:\d+)?")
_BUCKET = re.compile(_HOST)

_SECRET_NAME = re.compile(
    r"passw|passphrase|pwd|secret|token|credential|signature|accesskey|accessid|apikey|privatekey"
    r"|authorization|^(pass|sig|key|auth|user|username|uid|jwt)$"
)


def without_credentials(address: str) -> str:
    """An address without user name, password and secret options; the rest is unchanged.

    A text without `scheme://` is a path, and is returned as it is. A user name alone is removed
    too: it may be a token. From an address that is damaged, for instance by a slash in its
    password, rather too much is removed than too little.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return address
    scheme, rest = found.groups()
    rest = _without_user(rest, _SERVER if scheme.startswith("http") else _BUCKET)
    place, mark, options = re.split(r"([?#]|\Z)", rest, maxsplit=1)
    return scheme + place + _without_secrets(mark, options)


def hide_credentials(text: str) -> str:
    """A text, such as an error's message, without the credentials of the addresses in it."""
    return _IN_TEXT.sub(lambda found: without_credentials(found[0]), text)


def in_all_texts(clean: Callable[[str], str], value: Any) -> Any:
    """A value of the kinds that JSON and YAML have, with `clean` applied to every text in it:
    `without_credentials` for settings, `hide_credentials` for messages."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {key: in_all_texts(clean, item) for key, item in value.items()}
    if isinstance(value, list):
        return [in_all_texts(clean, item) for item in value]
    if isinstance(value, tuple):
        return tuple(in_all_texts(clean, item) for item in value)
    return value


def _without_user(rest: str, valid_host: "re.Pattern[str]") -> str:
    """The part of an address after `scheme://`, without user name and password.

    Databases and stores take passwords with a slash: what stands before the path is then no valid
    host, and there is an `@` further on.
    """
    host, tail = _split(rest)
    if "@" in host:
        rest = rest[host.rindex("@") + 1 :]
        host, tail = _split(rest)
    if "@" in tail and not valid_host.fullmatch(host):
        rest = tail.rpartition("@")[2]
    return rest


def _split(rest: str) -> tuple[str, str]:
    """The host, with any user name and password, and the rest from the path on."""
    end = re.search(r"[/?#]|\Z", rest)
    assert end is not None
    return rest[: end.start()], rest[end.start() :]


def _without_secrets(mark: str, options: str) -> str:
    """The options of an address that are not secret; `mark` is the `?` or `#` before them."""
    kept = ""
    for sign, option in re.findall(r"(^|[?#&;])([^?#&;]*)", options):
        name, equals, value = option.partition("=")
        if not (equals and _is_secret(name)) and not _holds_secret(unquote(value)):
            kept += (sign if kept else mark) + option
    return kept


def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(re.sub(r"[^a-z]", "", unquote(name).lower())) is not None


def _holds_secret(value: str) -> bool:
    """A connection string (`UID=...;PWD=...`), or an address with a user."""
    names = re.findall(r"([\w .\-]+)=", value)
    return any(map(_is_secret, names)) or re.search(r":[^/].*@|://.*@", value) is not None
