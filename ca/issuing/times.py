"""Times of certificates: UTCTime through 2049, GeneralizedTime from 2050 on (RFC 5280 §4.1.2.5)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

from ca.errors import Internal
from ca.issuing import der

_UTC = re.compile(rb"\d{12}Z")
_GENERALIZED = re.compile(rb"\d{14}Z")


def encode_time(moment: datetime) -> bytes:
    """One Time, DER. `moment` is aware, in UTC and in whole seconds; anything else raises Internal."""
    if moment.tzinfo is not UTC or moment.microsecond or moment.year < 1950:
        raise Internal("a certificate's times are whole seconds of UTC from 1950 on", reason="TIME")
    year = moment.year
    rest = f"{moment.month:02d}{moment.day:02d}{moment.hour:02d}{moment.minute:02d}{moment.second:02d}Z"
    if year < 2050:
        return der.tlv(der.UTC_TIME, f"{year % 100:02d}{rest}".encode())
    return der.tlv(der.GENERALIZED_TIME, f"{year:04d}{rest}".encode())


@lru_cache(maxsize=256)
def encode_validity(not_before: datetime, not_after: datetime) -> bytes:
    """A Validity, DER; remembered, since a batch shares its times. Raises Internal as `encode_time` does."""
    return der.tlv(der.SEQUENCE, encode_time(not_before) + encode_time(not_after))


@lru_cache(maxsize=256)
def decode_validity(validity: bytes) -> tuple[datetime, datetime]:
    """notBefore and notAfter of a Validity. Raises InvalidArgument (reason DER) for any form RFC 5280 forbids."""
    outer = der.Reader(validity)
    times = outer.enter(der.SEQUENCE)
    outer.close()
    not_before, not_after = _decode_time(times), _decode_time(times)
    times.close()
    return not_before, not_after


def _decode_time(times: der.Reader) -> datetime:
    if times.peek() == der.UTC_TIME:
        text = times.take(der.UTC_TIME)
        if _UTC.fullmatch(text) is None:  # RFC 5280 §4.1.2.5.1: seconds, and Z
            raise der.malformed("UTCTime of a wrong form")
        century = b"19" if text >= b"50" else b"20"
        return _moment(century + text)
    text = times.take(der.GENERALIZED_TIME)
    if _GENERALIZED.fullmatch(text) is None or text < b"2050":  # RFC 5280 §4.1.2.5.2: no fractions, and Z
        raise der.malformed("GeneralizedTime of a wrong form, or of a year before 2050")
    return _moment(text)


def _moment(text: bytes) -> datetime:
    """From YYYYMMDDHHMMSSZ."""
    month, day, hour, minute, second = (int(text[at : at + 2]) for at in range(4, 14, 2))
    try:
        return datetime(int(text[:4]), month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise der.malformed("no such date") from error
