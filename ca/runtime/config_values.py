"""Values that both programs' configurations have."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from ca.identity.signer_name import check_signer_name


def _host_port(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError("must be host:port, such as 127.0.0.1:9988")
    return text


HostPort = Annotated[str, AfterValidator(_host_port)]
SignerName = Annotated[str, AfterValidator(check_signer_name)]
