"""JSON without surprises: bounded, unique member names, finite numbers, text that is valid Unicode."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def loads(document: str | bytes, *, max_bytes: int) -> Any:
    """Parses UTF-8 JSON (RFC 8259). Raises ValueError whose text fits into a message to the caller.

    Refuses what parsers disagree on: duplicate member names (§4), NaN and infinities, lone surrogates.
    """
    if len(document) > max_bytes:
        raise ValueError(f"longer than {max_bytes} bytes")
    try:
        data = document.encode("utf-8") if isinstance(document, str) else document
        text = data.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_not_a_number, parse_float=_finite, parse_int=_bounded
        )
        if "\\u" in text:  # only an escape can bring a lone surrogate past the decoding above
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise ValueError("not valid unicode text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):  # SPIFFE Bundle §5.1.1 (G16), RFC 8259 §4 in SPIFFE Bundle §6.3 (G19)
        raise ValueError("a member name is given twice")
    return members


def _not_a_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


def _bounded(digits: str) -> int:
    if len(digits) > 40:  # more than 128 bits; converting very long numbers takes quadratic time
        raise ValueError("a number is out of range")
    return int(digits)
