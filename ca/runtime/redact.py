"""Configurations and texts without what is or may be secret, for bug reports."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel

WITHHELD = "(withheld)"

_SECRET_NAME = re.compile(r"(^|_)(token|secret|password|passphrase|pin|key|credentials?)s?($|_)")
_NAMES_A_PLACE = re.compile(r"_(file|path|dir|env|socket|type|id|name|seconds|bytes)$")
_URL_PASSWORD = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]{0,30}://)\S*@", re.IGNORECASE)
"""To the last `@`, whatever is between: database drivers take passwords with slashes and quotes as they are. Rather a
path too many is withheld. With a scheme of any length a long word would take a time that grows with its square."""
_URL_QUERY = re.compile(r"(?P<url>[a-z][a-z0-9+.-]*://[^?\s]*)\?\S+", re.IGNORECASE)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_JWT = re.compile(r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


def configuration(config: BaseModel) -> dict[str, Any]:
    """A configuration as plain values. Of what plugins are configured with, only switches, numbers and the places of
    files are shown: nobody but the plugin knows what else is a secret."""
    shown: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            shown[name] = configuration(value)
        elif isinstance(value, dict):
            shown[name] = {key: _foreign(str(key), item) for key, item in value.items()}
        else:
            shown[name] = _own(name, value)
    return shown


def text(value: str) -> str:
    """Private keys, signed tokens, and passwords in URLs are taken out."""
    value = _PRIVATE_KEY.sub(WITHHELD, value)
    value = _JWT.sub(WITHHELD, value)
    return _URL_PASSWORD.sub(rf"\g<scheme>{WITHHELD}@", value)


def _own(name: str, value: Any) -> Any:
    """A value of our own models: text, number, switch, list of such, or nothing."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_own(name, item) for item in value]
    if _SECRET_NAME.search(name) and not _NAMES_A_PLACE.search(name):
        return WITHHELD
    return _URL_QUERY.sub(rf"\g<url>?{WITHHELD}", text(str(value)))


def _foreign(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _foreign(str(key), item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str) and _NAMES_A_PLACE.search(name) and len(value) < 300 and "\n" not in value:
        return text(value)
    return WITHHELD
