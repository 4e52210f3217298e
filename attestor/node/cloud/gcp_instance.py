"""What Google's instance identity token says of a machine: claims of the right type and form, or none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attestor.node.cloud.evidence import malformed_document, signed_text

_PROJECT = re.compile(r"([a-z0-9][a-z0-9.-]{0,62}:)?[a-z][a-z0-9-]{1,62}")
_ZONE = re.compile(r"[a-z]+(-[a-z0-9]+){1,4}")
_NUMBER = re.compile(r"[0-9]{1,24}")
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,128}@[A-Za-z0-9.-]{1,128}")


@dataclass(frozen=True, kw_only=True)
class GcpInstance:
    """`service_account` is the one that the token was asked of, where it says so."""

    project_id: str
    project_number: int
    zone: str
    instance_id: str
    instance_name: str
    created: int
    service_account: str | None


def instance_of(claims: Mapping[str, Any]) -> GcpInstance:
    """From the claims of a verified token. Raises InvalidArgument CLOUD_DOCUMENT_MALFORMED."""
    engine = claims.get("google")
    engine = engine.get("compute_engine") if isinstance(engine, dict) else None
    if not isinstance(engine, dict):
        raise malformed_document("`google.compute_engine` is missing: ask for the token with `format=full`")
    return GcpInstance(
        project_id=signed_text(engine, "project_id", _PROJECT),
        project_number=_integer(engine, "project_number"),
        zone=signed_text(engine, "zone", _ZONE),
        instance_id=signed_text(engine, "instance_id", _NUMBER),
        instance_name=signed_text(engine, "instance_name", _NAME),
        created=_integer(engine, "instance_creation_timestamp"),
        service_account=_service_account(claims),
    )


def _integer(claims: Mapping[str, Any], name: str) -> int:
    value = claims.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise malformed_document(f"`{name}` is missing or no number")
    return value


def _service_account(claims: Mapping[str, Any]) -> str | None:
    if claims.get("email_verified") is not True:
        return None
    return signed_text(claims, "email", _EMAIL)
