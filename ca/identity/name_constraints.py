"""Name constraints (RFC 5280 §4.2.1.10, X509-SVID §4.2): is a certificate's every name inside what its issuers allow?

Handled: URI, DNS, e-mail, IP address and directory names. A constraint on any other kind of name refuses a
certificate that holds such a name, as §4.2.1.10 asks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from cryptography import x509
from cryptography.x509.oid import NameOID

from ca.identity.text import quote

_IP = (ipaddress.IPv4Address, ipaddress.IPv6Address)


def first_violation(certificate: x509.Certificate, constraints: x509.NameConstraints) -> str:
    """Says which name of the certificate breaks the constraints; empty when none does.

    May raise what cryptography raises for malformed extensions (ValueError, x509.DuplicateExtension).
    """
    return violation_of(_names(certificate), constraints)


def violation_of(names: Iterable[x509.GeneralName], constraints: x509.NameConstraints) -> str:
    """The same for names that are in no certificate yet."""
    for name in names:
        same_kind = [c for c in constraints.excluded_subtrees or () if type(c) is type(name)]
        # RFC 5280 §6.1.3 (c): outside every excluded subtree
        if any(_within(name, c, excluding=True) for c in same_kind):
            return f"{_show(name)} is excluded"
        same_kind = [c for c in constraints.permitted_subtrees or () if type(c) is type(name)]
        # RFC 5280 §6.1.3 (b): inside one of the permitted subtrees, if there are any for this kind of name
        if same_kind and not any(_within(name, c, excluding=False) for c in same_kind):
            return f"{_show(name)} is not permitted"
    return ""


def _names(certificate: x509.Certificate) -> Iterable[x509.GeneralName]:
    """All names that constraints apply to: subject alternative names, the subject, and e-mail addresses in it."""
    alternatives: list[x509.GeneralName] = []
    try:
        alternatives = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        pass  # then the subject alone is constrained
    yield from alternatives
    if certificate.subject.rdns:
        yield x509.DirectoryName(certificate.subject)
    if not any(isinstance(name, x509.RFC822Name) for name in alternatives):
        for attribute in certificate.subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS):
            yield x509.RFC822Name(str(attribute.value))


def _within(name: x509.GeneralName, constraint: x509.GeneralName, *, excluding: bool) -> bool:
    """Both are of the same kind. A name that cannot be judged counts as a violation: excluded, and not permitted."""
    if isinstance(name, x509.UniformResourceIdentifier):
        host = _uri_host(name.value)
        return excluding if host is None else _host_within(host, str(constraint.value))
    if isinstance(name, x509.DNSName):
        return _dns_within(name.value.lower(), str(constraint.value).lower(), excluding=excluding)
    if isinstance(name, x509.RFC822Name):
        return _email_within(name.value, str(constraint.value))
    if isinstance(name, x509.IPAddress):
        network = constraint.value
        return isinstance(name.value, _IP) and name.value in network
    if isinstance(name, x509.DirectoryName) and isinstance(constraint, x509.DirectoryName):
        prefix = constraint.value.rdns
        return name.value.rdns[: len(prefix)] == prefix
    return excluding


def _uri_host(uri: str) -> str | None:
    """The host of a URI in lower case; None when it has no authority or an IP address, which §4.2.1.10 refuses."""
    _, found, rest = uri.partition("://")
    for delimiter in "/?#":
        rest = rest.partition(delimiter)[0]
    host = rest.rpartition("@")[2]
    if not host.startswith("["):
        host = host.partition(":")[0]
    if not found or not host or host.startswith("["):
        return None
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host.lower()
    return None


def _host_within(host: str, constraint: str) -> bool:
    """X509-SVID §4.2 (B11): a host names itself alone, a leading dot names all below and not itself."""
    constraint = constraint.lower()
    if constraint.startswith("."):
        return host.endswith(constraint) and len(host) > len(constraint)
    return not constraint or host == constraint


def _dns_within(name: str, constraint: str, *, excluding: bool) -> bool:
    """A DNS constraint covers its own name and all below it; `*.b` may stand for `a.b`, so excluding that hits it."""
    base = constraint.removeprefix(".")
    if not base or name.endswith("." + base) or (name == base and base == constraint):
        return True
    return excluding and name.startswith("*.") and base.endswith(name[1:]) and "." not in base[: -len(name[1:])]


def _email_within(address: str, constraint: str) -> bool:
    local, _, host = address.rpartition("@")
    if "@" in constraint:
        wanted_local, _, wanted_host = constraint.rpartition("@")
        return local == wanted_local and host.lower() == wanted_host.lower()
    return _host_within(host.lower(), constraint)


def _show(name: x509.GeneralName) -> str:
    value = name.value
    return quote(value.rfc4514_string() if isinstance(value, x509.Name) else str(value))
