"""To-be-signed certificates written from a template: what never varies is encoded once, the rest is filled in."""

from __future__ import annotations

from ca.issuing import der
from ca.issuing.extensions import CRITICAL, SUBJECT_ALT_NAME, SUBJECT_KEY_HEAD
from ca.issuing.lifetime import Lifetime
from ca.issuing.names import COMMON_NAME, Attribute, encode_attribute
from ca.issuing.parts import EXTENSIONS, VERSION_3, Extension, Parts, read_names
from ca.issuing.rules import Expected
from ca.issuing.times import encode_validity


class Template:
    """The constant bytes of one kind of certificate from one issuer.

    `linted` holds the parts of a certificate of this template that passed every lint rule; until then it is None.
    `like` holds what the last one that passed shares with the others of its batch: lifetime, subject, kind of key.
    Two threads may set them at once; each sets what passed.
    """

    __slots__ = ("_subject_rdns", "algorithm_and_issuer", "authority_key", "before_key", "like", "linted", "subject")

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
        self.like: tuple[Lifetime, bytes, str] | None = None

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


def _is_empty(subject: bytes) -> bool:
    return len(subject) <= 2


def _names_head(subject: bytes) -> bytes:
    """What stands before the alternative names: they are critical if there is no other name (RFC 5280 §4.2.1.6)."""
    return SUBJECT_ALT_NAME + CRITICAL if _is_empty(subject) else SUBJECT_ALT_NAME
