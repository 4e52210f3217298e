"""To-be-signed certificates written from a template: what never varies is encoded once, the rest is filled in."""

from __future__ import annotations

from ca.issuing import der
from ca.issuing.extensions import CRITICAL, SUBJECT_ALT_NAME, SUBJECT_KEY_HEAD
from ca.issuing.lifetime import Lifetime
from ca.issuing.names import COMMON_NAME, Attribute, encode_attribute
from ca.issuing.parts import EXTENSIONS, VERSION_3, Extension, Parts, read_names
from ca.issuing.rules import Expected
from ca.issuing.times import encode_validity

MAX_OUTLINES = 256
"""Kept at once by one template: those of a second, mostly."""


class Template:
    """The constant bytes of one kind of certificate from one issuer.

    `linted` holds the parts of a certificate of this template that passed every lint rule; until then it is None.
    `outlines` holds what others of those that passed may share with one. Two threads may write to both at once; each
    writes what passed.
    """

    __slots__ = (
        "_subject_rdns",
        "algorithm_and_issuer",
        "authority_key",
        "before_key",
        "linted",
        "outlines",
        "subject",
    )

    def __init__(
        self,
        *,
        algorithm: bytes,
        issuer_name: bytes,
        subject: bytes,
        leading_extensions: bytes,
        authority_key: bytes = b"",
    ) -> None:
        """All in DER: AlgorithmIdentifier, Names, and Extensions (`authority_key` is empty on a root)."""
        self.algorithm_and_issuer = algorithm + issuer_name
        self.subject = subject
        self._subject_rdns = der.Reader(subject).take(der.SEQUENCE)
        self.before_key = leading_extensions + SUBJECT_KEY_HEAD
        self.authority_key = authority_key
        self.linted: Parts | None = None
        self.outlines: dict[tuple[object, ...], tuple[bytes, bytes, bytes, bytes]] = {}

    def subject_with(self, common_name: str) -> bytes:
        """The template's subject with a common name behind it. Raises InvalidArgument (reason SUBJECT)."""
        attribute = encode_attribute(Attribute(COMMON_NAME, common_name))
        return der.tlv(der.SEQUENCE, self._subject_rdns + attribute)

    def fill(
        self,
        *,
        serial: int,
        lifetime: Lifetime,
        key_der: bytes,
        key_identifier: bytes,
        names: bytes,
        subject: bytes,
    ) -> bytes:
        """The TBSCertificate (RFC 5280 §4.1.2), DER.

        `key_der` is the SubjectPublicKeyInfo; `names` are GeneralNames (`extensions.alternative_names`); `subject` is
        a Name, mostly the template's own.

        Everything that the certificate claims stands in here, and so under the signature: SPIFFE-ID §3.2 (A23).
        """
        tlv = der.tlv
        extensions = (
            self.before_key
            + key_identifier
            + self.authority_key
            + tlv(der.SEQUENCE, _names_head(subject) + tlv(der.OCTET_STRING, names))
        )
        return tlv(
            der.SEQUENCE,
            b"".join(
                (
                    VERSION_3,
                    der.integer(serial),
                    self.algorithm_and_issuer,
                    encode_validity(lifetime.not_before, lifetime.not_after),
                    subject,
                    key_der,
                    tlv(EXTENSIONS, tlv(der.SEQUENCE, extensions)),
                )
            ),
        )

    def names_in(self, tbs: bytes, want: Expected) -> bytes | None:
        """The value of the alternative names, given that all else is as expected or passed the lint before; else None.

        Compares bytes instead of reading them: what does not vary with what passed, what varies with `want`. Raises
        InvalidArgument (reason DER) for bytes that cannot be read.
        """
        if self.linted is None:
            return None
        end = len(tbs)
        at, stop = der.read(tbs, 0, end, der.SEQUENCE)
        lifetime = want.lifetime
        head = b"".join(
            (
                VERSION_3,
                der.integer(want.serial),
                self.algorithm_and_issuer,
                encode_validity(lifetime.not_before, lifetime.not_after),
                want.subject,
                want.key.der,
            )
        )
        if stop != end or not tbs.startswith(head, at):
            return None
        at, stop = der.read(tbs, at + len(head), end, EXTENSIONS)
        at, extensions_end = der.read(tbs, at, stop, der.SEQUENCE)
        if stop != end or extensions_end != end:
            return None
        tail = self.before_key + want.key_identifier + self.authority_key
        return self._cut_names(tbs, at + len(tail), _names_head(want.subject)) if tbs.startswith(tail, at) else None

    def remember(self, tbs: bytes, want: Expected, names: bytes) -> None:
        """Keep the outline of bytes that passed the lint, given what `names_in` returned: all but serial number, key,
        key identifier and alternative names."""
        start, _ = der.read(tbs, 0, len(tbs), der.SEQUENCE)
        serial = der.integer(want.serial)
        validity = encode_validity(want.lifetime.not_before, want.lifetime.not_after)
        serial_at = start + len(VERSION_3)
        after_serial = serial_at + len(serial)
        key_at = after_serial + len(self.algorithm_and_issuer) + len(validity) + len(want.subject)
        extension = der.tlv(der.SEQUENCE, _names_head(want.subject) + der.tlv(der.OCTET_STRING, names))
        after_identifier = len(tbs) - len(extension) - len(self.authority_key)
        if len(self.outlines) >= MAX_OUTLINES:
            self.outlines.clear()
        self.outlines[_shape(want, serial, names)] = (
            tbs[:serial_at],
            tbs[after_serial:key_at],
            tbs[key_at + len(want.key.der) : after_identifier - len(want.key_identifier)],
            tbs[after_identifier : len(tbs) - len(names)],
        )

    def expects(self, tbs: bytes, want: Expected, names: bytes) -> bool:
        """Whether `tbs` is an outline that was kept, filled with what is wanted and these alternative names."""
        serial = der.integer(want.serial)
        outline = self.outlines.get(_shape(want, serial, names))
        if outline is None:
            return False
        head, issuer_to_subject, extensions, tail = outline
        return tbs == b"".join(
            (head, serial, issuer_to_subject, want.key.der, extensions, want.key_identifier, tail, names)
        )

    def cut(self, tbs: bytes, want: Expected) -> Parts | None:
        """The parts of `tbs`, equal to `parse_tbs(tbs)`; None where `names_in` says so. Raises as that does."""
        names = self.names_in(tbs, want)
        return None if names is None else self.parts(want, names)

    def parts(self, want: Expected, names: bytes) -> Parts | None:
        """The same, given what `names_in` returned."""
        linted = self.linted
        if linted is None:
            return None
        head = self.before_key[len(self.before_key) - 2 :]
        return Parts(
            linted.version,
            der.integer(want.serial)[2:],
            linted.algorithm,
            linted.issuer,
            encode_validity(want.lifetime.not_before, want.lifetime.not_after),
            want.subject,
            want.key.der,
            linted.unique_ids,
            linted.oids,
            linted.key_usage,
            linted.extended_key_usage,
            linted.basic_constraints,
            Extension(False, head + want.key_identifier),
            linted.authority_key_id,
            _is_empty(want.subject),
            read_names(names),
        )

    def _cut_names(self, tbs: bytes, at: int, head: bytes) -> bytes | None:
        """The value of the alternative names, given that they are the last extension and begin as they ought to."""
        end = len(tbs)
        at, stop = der.read(tbs, at, end, der.SEQUENCE)
        if stop != end or not tbs.startswith(head, at):
            return None
        at, stop = der.read(tbs, at + len(head), end, der.OCTET_STRING)
        return tbs[at:] if stop == end else None


def _shape(want: Expected, serial: bytes, names: bytes) -> tuple[object, ...]:
    """What two certificates of a template must share to have the same outline."""
    times, key = want.lifetime, want.key
    return (times.not_before, times.not_after, want.subject, key.kind, len(key.der), len(serial), len(names))


def _is_empty(subject: bytes) -> bool:
    return len(subject) <= 2


def _names_head(subject: bytes) -> bytes:
    """What stands before the alternative names: they are critical if there is no other name (RFC 5280 §4.2.1.6)."""
    return SUBJECT_ALT_NAME + CRITICAL if _is_empty(subject) else SUBJECT_ALT_NAME
