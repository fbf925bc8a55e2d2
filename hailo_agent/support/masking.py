"""Take secrets out of whatever is to leave the node.

Pure. The bundle collects nothing that is known to hold secrets; this is for those that somebody put
where they do not belong. What is masked says so, and names are kept: a pod called `token-refresher`
stays what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

MASK: Final = "(masked)"

_SECRET_NAME: Final = re.compile(
    r"passw(?:or)?d|passphrase|secret|token|credential|private.?key|api.?key|access.?key"
    r"|identity.?token|^auth$|_auth$|authorization|bearer|^pwd$",
    re.IGNORECASE,
)
# Each repetition is bounded: what is searched may be long, and written to take long.
_ASSIGNED: Final = re.compile(
    r"(?P<name>(?:passw(?:or)?d|passphrase|secret|token|credentials?|api_?key|access_?key"
    r"|private_?key|\bauth|_auth|authorization)[\w-]{0,64}\"?\s{0,8}[=:]\s{0,8})"
    r"(?P<value>\"[^\"]*\"|'[^']*'|(?:(?:basic|bearer)\s+)?[^\s,;\"']+)",
    re.IGNORECASE,
)
_BARE: Final = (
    re.compile(
        r"\beyJ[\w-]{8,4096}\.[\w-]{8,8192}\.[\w-]{0,4096}"
    ),  # a JSON web token: a service account's
    re.compile(r"\b(?:bearer|basic)\s{1,8}[\w.~+/=-]{12,}", re.IGNORECASE),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", re.DOTALL),
)
_USERINFO: Final = re.compile(r"(?<=://)[^\s/@\"']{1,256}@")

_SHORTEST_SECRET: Final = 8
"""A shorter value of a variable is a word that may stand anywhere, `default` for instance."""


def secrets_of(environ: Mapping[str, str]) -> tuple[str, ...]:
    """List the values of variables that are called like secrets, the longest first."""
    values = {
        value
        for name, value in environ.items()
        if is_secret_name(name) and len(value) >= _SHORTEST_SECRET and not value.startswith("/")
    }
    return tuple(sorted(values, key=lambda value: (-len(value), value)))


def is_secret_name(name: str) -> bool:
    """Tell whether what is called so is likely to be a secret."""
    return _SECRET_NAME.search(name) is not None


def masked(text: str, secrets: Iterable[str] = ()) -> str:
    """Mask in a text what is known to be secret, and what looks like it."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = _USERINFO.sub(f"{MASK}@", text)
    for pattern in _BARE:
        text = pattern.sub(MASK, text)
    return _ASSIGNED.sub(rf"\g<name>{MASK}", text)


def masked_document(value: Any, secrets: Iterable[str] = ()) -> Any:  # noqa: ANN401 - any JSON value
    """Mask every text of a document, and the whole of what is called like a secret."""
    known = tuple(secrets)
    match value:
        case str():
            return masked(value, known)
        case dict():
            return {key: _entry(str(key), entry, known) for key, entry in value.items()}
        case list() | tuple():
            return [masked_document(entry, known) for entry in value]
        case _:
            return value


def _entry(key: str, value: Any, secrets: tuple[str, ...]) -> Any:  # noqa: ANN401 - as above
    if is_secret_name(key.rpartition(".")[2]) and value not in ("", None):
        return MASK
    return masked_document(value, secrets)
