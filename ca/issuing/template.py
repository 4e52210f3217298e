"""To-be-signed certificates written from a template: what never varies is encoded once, the rest is filled in."""

from __future__ import annotations

from ca.issuing import der
from ca.issuing.extensions import KEY_IDENTIFIER_BYTES, SUBJECT_ALT_NAME, SUBJECT_KEY_HEAD
from ca.issuing.lifetime import Lifetime
from ca.issuing.names import COMMON_NAME, Attribute, encode_attribute
from ca.issuing.parts import EXTENSIONS, VERSION_3, Extension, Parts, read_names
from ca.issuing.rules import Expected
from ca.issuing.times import encode_validity


class Template:
    """The constant bytes of one kind of certificate from one issuer.

    `linted` holds the parts of a certificate of this template that passed every lint rule; until then it is None.
    Two threads may set it at once; each sets what passed.
    """

    __slots__ = ("_subject_rdns", "algorithm_and_issuer", "authority_key", "before_key", "linted", "subject")

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
            + tlv(der.SEQUENCE, SUBJECT_ALT_NAME + tlv(der.OCTET_STRING, names))
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

    def cut(self, tbs: bytes, want: Expected) -> Parts | None:
        """The parts of `tbs`, given that all but the names are as expected or passed the lint before; else None.

        Compares bytes instead of reading them: what does not vary with what passed, what varies with `want`. The
        result equals `parse_tbs(tbs)`. Raises InvalidArgument (reason DER) for names that cannot be read.
        """
        linted = self.linted
        if linted is None:
            return None
        end = len(tbs)
        at, stop = der.read(tbs, 0, end, der.SEQUENCE)
        serial = der.integer(want.serial)
        validity = encode_validity(want.lifetime.not_before, want.lifetime.not_after)
        head = b"".join((VERSION_3, serial, self.algorithm_and_issuer, validity, want.subject, want.key.der))
        if stop != end or not tbs.startswith(head, at):
            return None
        at, stop = der.read(tbs, at + len(head), end, EXTENSIONS)
        at, extensions_end = der.read(tbs, at, stop, der.SEQUENCE)
        if stop != end or extensions_end != end:
            return None
        tail = self.before_key + want.key_identifier + self.authority_key
        names = self._cut_names(tbs, at + len(tail)) if tbs.startswith(tail, at) else None
        if names is None:
            return None
        return Parts(
            linted.version,
            serial[2:],
            linted.algorithm,
            linted.issuer,
            validity,
            want.subject,
            want.key.der,
            linted.unique_ids,
            linted.oids,
            linted.key_usage,
            linted.extended_key_usage,
            linted.basic_constraints,
            Extension(False, tail[len(self.before_key) - 2 : len(self.before_key) + KEY_IDENTIFIER_BYTES]),
            linted.authority_key_id,
            linted.names_critical,
            read_names(names),
        )

    def _cut_names(self, tbs: bytes, at: int) -> bytes | None:
        """The value of the alternative names, given that they are the last extension and not critical."""
        end = len(tbs)
        at, stop = der.read(tbs, at, end, der.SEQUENCE)
        if stop != end or not tbs.startswith(SUBJECT_ALT_NAME, at):
            return None
        at, stop = der.read(tbs, at + len(SUBJECT_ALT_NAME), end, der.OCTET_STRING)
        return tbs[at:] if stop == end else None
