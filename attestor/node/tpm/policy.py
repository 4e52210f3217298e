"""A policy over measured boot: which values the PCRs of a node may have, and a quote held against it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from attestor.node.tpm.messages import Quoted, QuoteRequest
from attestor.node.tpm.public import DIGESTS, PublicArea
from attestor.node.tpm.signatures import BadSignature, verify_signature
from attestor.node.tpm.structures import (
    ATTEST_QUOTE,
    BANKS,
    DIGEST_BYTES,
    Malformed,
    parse_attest,
    parse_signature,
)
from ca.errors import Denied
from ca.runtime.notes import note


@dataclass(frozen=True, slots=True, kw_only=True)
class PcrPolicy:
    """In this bank each of these PCRs has one of its values."""

    bank: str
    allowed: Mapping[int, frozenset[bytes]]

    def question(self, nonce: bytes) -> QuoteRequest:
        return QuoteRequest(nonce=nonce, bank=self.bank, pcrs=tuple(sorted(self.allowed)))

    def check(self, quoted: Quoted | None, *, asked: QuoteRequest, ak: PublicArea) -> None:
        """Raises Denied: no quote, not this key's over this nonce and these PCRs, or a value that is not allowed.

        `ak` must have been found to be the TPM's own by credential activation: then nobody but that TPM quotes.
        """
        if quoted is None:
            raise Denied(
                "a quote of the TPM's PCRs is needed here, and none came",
                reason="TPM_QUOTE_MISSING",
                hint="SPIRE's agents make none; the agent must be one of ours",
            )
        try:
            _check_quote(quoted, asked, ak)
        except (Malformed, BadSignature) as error:
            note("quote", error)
            raise Denied("the quote is not the TPM's over what was asked for", reason="TPM_QUOTE_INVALID") from error
        self._check_values(quoted, asked)

    def _check_values(self, quoted: Quoted, asked: QuoteRequest) -> None:
        refused = False
        for index, value in zip(asked.pcrs, quoted.values, strict=True):
            allowed = value in self.allowed[index]
            note(f"pcr {self.bank}:{index}", f"{value.hex()}, {'allowed' if allowed else 'not allowed'}")
            refused = refused or not allowed
        if refused:
            raise Denied(
                "the node has booted something that the policy does not allow",
                reason="TPM_PCR_REFUSED",
                hint="an administrator of the server sees which PCR it is",
            )


def _check_quote(quoted: Quoted, asked: QuoteRequest, ak: PublicArea) -> None:
    """Part 3 §18.4: the signature first, then what was signed."""
    verify_signature(ak, parse_signature(quoted.signature), quoted.attest)
    attest = parse_attest(quoted.attest)
    if attest.kind != ATTEST_QUOTE:
        raise Malformed("it is no quote")
    if not hmac.compare_digest(attest.extra_data, asked.nonce):
        raise Malformed("it is over another nonce")
    bank = BANKS[asked.bank]
    if attest.selection != ((bank, frozenset(asked.pcrs)),):
        raise Malformed("it is over other PCRs")
    if len(quoted.values) != len(asked.pcrs) or any(len(value) != DIGEST_BYTES[bank] for value in quoted.values):
        raise Malformed("it comes with other values than those asked for")
    digest = hashlib.new(DIGESTS[ak.scheme.digest], b"".join(quoted.values)).digest()
    if not hmac.compare_digest(digest, attest.pcr_digest):
        raise Malformed("its values are not those that were quoted")
