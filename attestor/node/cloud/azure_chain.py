"""The certificates above an attested document's signer: up to a trusted root, and for Azure's own names.

Azure's messages hold the signer's certificate and not those above it. They are configured, or fetched from where the
certificate says, if that is on a list of hosts; what is fetched proves itself by the root or counts for nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from urllib.parse import SplitResult, urlsplit

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from ca.errors import BurgeeError, Denied
from ca.identity.certificate import MAX_CERTIFICATE_BYTES, load_certificate
from ca.ports import Clock
from ca.runtime.elsewhere import elsewhere
from ca.runtime.https import HttpClient
from ca.runtime.notes import note

MAX_STEPS = 3
"""Certificates fetched for one chain."""
MAX_KEPT = 32
FETCHES_PER_MINUTE = 12
"""Whoever asks: a stranger's certificate can name any address on a listed host."""
FETCH_SECONDS = 5.0
_PEM = b"-----BEGIN CERTIFICATE-----"


class SignerChain:
    """Verifies signers. `domains` are names of which the signer's certificate must have one, or one below it."""

    def __init__(
        self,
        *,
        roots: Sequence[x509.Certificate],
        intermediates: Sequence[x509.Certificate],
        domains: Sequence[str],
        hosts: Sequence[str],
        clock: Clock,
    ) -> None:
        self._store = Store(list(roots))
        self._intermediates = tuple(intermediates)
        self._domains = tuple(domain.lower() for domain in domains)
        self._fetched = Issuers(hosts, clock)

    async def verify(self, signer: x509.Certificate, sent: Sequence[x509.Certificate], now: datetime) -> None:
        """Raises Denied CLOUD_DOCUMENT_SIGNER."""
        name = self._name(signer)
        known, below = [*self._intermediates, *sent], [signer]
        for _ in range(MAX_STEPS + 1):
            why = self._try(signer, known, name, now)
            if why is None:
                self._fetched.proven(below[:-1])
                note("signer", f"{name}, issued by {_subject(signer.issuer)}")
                return
            async with elsewhere():
                issuer = await self._fetched.issuer_of(below[-1])
            if issuer is None:
                break
            known.append(issuer)
            below.append(issuer)
        else:
            why = "the chain is too long"
        self._fetched.of_no_use(below)
        raise _untrusted(why)

    def _try(self, signer: x509.Certificate, known: Sequence[x509.Certificate], name: str, now: datetime) -> str | None:
        try:
            verifier = PolicyBuilder().store(self._store).time(now).build_server_verifier(x509.DNSName(name))
            verifier.verify(signer, list(known))
        except (VerificationError, ValueError) as error:
            return str(error)
        return None

    def _name(self, signer: x509.Certificate) -> str:
        """A name of the certificate's that is Azure's; a wildcard stands for some name that it covers."""
        try:
            names = signer.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            found = names.get_values_for_type(x509.DNSName)
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
            raise _untrusted(f"its names cannot be read: {error}") from error
        for name in (each.lower() for each in found):
            if any(name == domain or name.endswith("." + domain) for domain in self._domains):
                return "any" + name[1:] if name.startswith("*.") else name
        raise _untrusted(f"its names are {', '.join(found[:8])}, wanted one of {', '.join(self._domains)}")


class Issuers:
    """Certificates fetched by the address in the certificate below them: few, one at a time. Those that a chain to a
    root was made of are kept; no stranger's are ever kept beside them, nor in their place."""

    def __init__(self, hosts: Sequence[str], clock: Clock) -> None:
        """`hosts` are names, with a port where it is not the scheme's."""
        self._hosts = frozenset(host.lower() for host in hosts)
        self._clock = clock
        self._kept: OrderedDict[str, x509.Certificate] = OrderedDict()
        self._proven: OrderedDict[str, x509.Certificate] = OrderedDict()
        self._starts: list[float] = []
        self._lock = asyncio.Lock()

    async def issuer_of(self, certificate: x509.Certificate) -> x509.Certificate | None:
        """None where it cannot be had."""
        url = self._address(certificate)
        if url is None:
            return None
        address = url.geturl()
        async with self._lock:
            found = self._proven.get(address) or self._kept.get(address) or await self._fetch(url)
            if found is None or found.subject != certificate.issuer:
                return None
            if address not in self._proven:
                _keep(self._kept, address, found)
            return found

    def proven(self, below: Sequence[x509.Certificate]) -> None:
        """A chain to a root has what was fetched for these."""
        for address in self._addresses(below):
            if address in self._kept:
                _keep(self._proven, address, self._kept.pop(address))

    def of_no_use(self, below: Sequence[x509.Certificate]) -> None:
        """No chain came of what was fetched for these: another time something else may be there."""
        for address in self._addresses(below):
            self._kept.pop(address, None)

    def _addresses(self, certificates: Sequence[x509.Certificate]) -> list[str]:
        return [url.geturl() for one in certificates if (url := self._address(one)) is not None]

    def _address(self, certificate: x509.Certificate) -> SplitResult | None:
        """The first address of the issuer's certificate that is on a listed host (RFC 5280 §4.2.2.1)."""
        for text in _issuer_addresses(certificate):
            try:
                url = urlsplit(text)
                plain = url.scheme in ("http", "https") and text.isascii() and text.isprintable() and " " not in text
                if plain and url.netloc.lower() in self._hosts and len(text) < 1024:
                    return url
            except ValueError:
                continue
        return None

    async def _fetch(self, url: SplitResult) -> x509.Certificate | None:
        now = self._clock.monotonic()
        self._starts = [start for start in self._starts if now - start < 60]
        if len(self._starts) >= FETCHES_PER_MINUTE:
            note("issuer's certificate", "not fetched: too many were in this minute")
            return None
        self._starts.append(now)
        client = HttpClient(
            f"{url.scheme}://{url.netloc}",
            source=f"`{url.netloc}` for a certificate",
            timeout_seconds=FETCH_SECONDS,
            max_bytes=MAX_CERTIFICATE_BYTES,
        )
        try:
            answer = await client.request("GET", (url.path or "/") + (f"?{url.query}" if url.query else ""))
            if answer.status != 200:
                raise ValueError(f"it answered {answer.status}")
            if _PEM in answer.body:
                return x509.load_pem_x509_certificate(answer.body)
            return load_certificate(answer.body)
        except (BurgeeError, ValueError) as error:
            note("issuer's certificate", f"not fetched from {url.geturl()}: {error}")
            return None
        finally:
            client.close()


def _keep(kept: OrderedDict[str, x509.Certificate], address: str, certificate: x509.Certificate) -> None:
    kept[address] = certificate
    kept.move_to_end(address)
    while len(kept) > MAX_KEPT:
        kept.popitem(last=False)


def _issuer_addresses(certificate: x509.Certificate) -> list[str]:
    try:
        access = certificate.extensions.get_extension_for_oid(ExtensionOID.AUTHORITY_INFORMATION_ACCESS).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return []
    return [
        each.access_location.value
        for each in _descriptions(access)
        if each.access_method == AuthorityInformationAccessOID.CA_ISSUERS
        and isinstance(each.access_location, x509.UniformResourceIdentifier)
    ]


def _descriptions(access: x509.ExtensionType) -> Sequence[x509.AccessDescription]:
    return list(access) if isinstance(access, x509.AuthorityInformationAccess) else []


def _subject(name: x509.Name) -> str:
    return name.rfc4514_string()


def _untrusted(why: str) -> Denied:
    note("signer", why)
    return Denied(
        "the cloud's document is signed by somebody who is not trusted here",
        reason="CLOUD_DOCUMENT_SIGNER",
        hint="what failed is for administrators: `caadmin explain agent` says it",
    )
