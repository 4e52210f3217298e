"""From a value to the rows of a policy table whose clause it satisfies, as bits of one int.

A table holds what all rows say about one attribute. Exact values are keys of a dict; of prefixes only the longest that
fits is looked for, since it knows its shorter ones; what nothing better is known for is tried one after the other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise

from policy.attributes import SEPARATOR
from policy.globs import NAMESPACE_MARK, service_account_test
from policy.matching import address, request_principal_parts, text_test
from policy.model import IpNetwork, Match, MatchKind
from policy.pieces import Masks, Matches
from policy.templates import Template

Finder = Callable[[str], int]


class Prefixes:
    """The masks of all prefixes of a text, by the longest."""

    __slots__ = ("masks", "parents", "texts")

    def __init__(self, masks: Masks) -> None:
        self.texts = sorted(masks)
        self.parents: list[int] = []
        self.masks: list[int] = []
        chain: list[int] = []
        for number, text in enumerate(self.texts):
            while chain and not text.startswith(self.texts[chain[-1]]):
                chain.pop()
            self.parents.append(chain[-1] if chain else -1)
            self.masks.append(masks[text] | (self.masks[chain[-1]] if chain else 0))
            chain.append(number)

    def __call__(self, value: str) -> int:
        number = bisect_right(self.texts, value) - 1
        while number >= 0 and not value.startswith(self.texts[number]):
            number = self.parents[number]
        return self.masks[number] if number >= 0 else 0


def _suffixes(masks: Masks) -> Finder:
    find = Prefixes({text[::-1]: mask for text, mask in masks.items()})
    return lambda value: find(value[::-1])


def _templates(masks: Masks) -> Finder:
    """Templates wait under the literal text that they begin with."""
    waiting: dict[str, list[tuple[Template, int]]] = defaultdict(list)
    for text, mask in masks.items():
        template = Template(text)
        waiting[template.literal_prefix].append((template, mask))
    lengths = sorted({len(text) for text in waiting})

    def find(value: str) -> int:
        found = 0
        for length in lengths:
            if length > len(value):
                break
            for template, mask in waiting.get(value[:length], ()):
                if template.matches(value):
                    found |= mask
        return found

    return find


def _namespaces(masks: Masks) -> Finder:
    def find(value: str) -> int:
        found, at = 0, value.find(NAMESPACE_MARK)
        while at >= 0:
            begin = at + len(NAMESPACE_MARK)
            end = value.find("/", begin)
            if end < 0:
                break
            found |= masks.get(value[begin:end], 0)
            at = value.find(NAMESPACE_MARK, at + 1)
        return found

    return find


def _service_accounts(masks: Masks) -> Finder:
    tests = {text: (service_account_test(text), mask) for text, mask in masks.items()}

    def after(parts: list[str], name: str) -> set[str]:
        return {following for part, following in pairwise(parts) if part == name}

    def find(value: str) -> int:
        parts, found = value.split("/"), 0
        for namespace in after(parts, "ns"):
            for account in after(parts, "sa"):
                test, mask = tests.get(f"{namespace}/{account}", (None, 0))
                if test is not None and test(value):
                    found |= mask
        return found

    return find


def _networks(networks: dict[IpNetwork, int]) -> Finder:
    by_length: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for network, mask in networks.items():
        shift = network.max_prefixlen - network.prefixlen
        by_length[network.version, shift][int(network.network_address) >> shift] = mask

    def find(value: str) -> int:
        if (ip := address(value)) is None:
            return 0
        found, number = 0, int(ip)
        for (version, shift), masks in by_length.items():
            if version == ip.version:
                found |= masks.get(number >> shift, 0)
        return found

    return find


def _issuers(waiting: dict[str, list[tuple[Callable[[str], bool], int]]]) -> Finder:
    def find(value: str) -> int:
        issuer, _, subject = value.partition(SEPARATOR)
        found = 0
        for test, mask in waiting.get(issuer, ()):
            if test(subject):
                found |= mask
        return found

    return find


def _others(masks: Iterable[tuple[Match, int]]) -> Finder:
    tests = [(text_test(match), mask) for match, mask in masks]

    def find(value: str) -> int:
        found = 0
        for test, mask in tests:
            if test(value):
                found |= mask
        return found

    return find


def _all(masks: Masks) -> int:
    found = 0
    for mask in masks.values():
        found |= mask
    return found


class Table:
    """All matches of one attribute."""

    __slots__ = ("exact", "finders", "present")

    def __init__(self, matches: Matches) -> None:
        """Among alternatives. What is given is kept and not changed."""
        self.exact = matches.exact
        self.present = 0
        self.finders: tuple[Finder, ...] = tuple(self._finders(matches))

    def _finders(self, matches: Matches) -> Iterable[Finder]:
        odd: list[tuple[Match, int]] = []
        for kind, masks in matches.others.items():
            if kind is MatchKind.PRESENT:
                self.present = _all(masks)
            elif kind is MatchKind.REQUEST_PRINCIPAL:
                yield from self._request_principals(masks, odd)
            else:
                fitting = masks if kind in _ANY_TEXT else {t: m for t, m in masks.items() if not set(t) & {"*", "/"}}
                if kind not in _FINDERS:
                    fitting = {}
                if fitting:
                    yield _FINDERS[kind](fitting)
                odd += ((Match(kind, text), mask) for text, mask in masks.items() if text not in fitting)
        if matches.networks:
            yield _networks(matches.networks)
        if odd:
            yield _others(odd)

    def _request_principals(self, masks: Masks, odd: list[tuple[Match, int]]) -> Iterable[Finder]:
        issuers: dict[str, list[tuple[Callable[[str], bool], int]]] = defaultdict(list)
        pairs: Masks = {}
        for text, mask in masks.items():
            issuer, subject = request_principal_parts(text)
            if issuer.kind is not MatchKind.EXACT:
                odd.append((Match(MatchKind.REQUEST_PRINCIPAL, text), mask))
            elif subject.kind is MatchKind.EXACT:
                pair = f"{issuer.text}{SEPARATOR}{subject.text}"
                pairs[pair] = pairs.get(pair, self.exact.get(pair, 0)) | mask
            else:
                issuers[issuer.text].append((text_test(subject), mask))
        self.exact = {**self.exact, **pairs}
        if issuers:
            yield _issuers(issuers)

    def of(self, value: str) -> int:
        """The rows that have an alternative for a value."""
        found = self.exact.get(value, 0) | self.present
        for find in self.finders:
            found |= find(value)
        return found


_FINDERS: dict[MatchKind, Callable[[Masks], Finder]] = {
    MatchKind.PREFIX: Prefixes,
    MatchKind.SUFFIX: _suffixes,
    MatchKind.TEMPLATE: _templates,
    MatchKind.NAMESPACE: _namespaces,
    MatchKind.SERVICE_ACCOUNT: _service_accounts,
    MatchKind.TRUST_DOMAIN: lambda masks: lambda value: masks.get(value.partition("/")[0], 0) if "/" in value else 0,
}
_ANY_TEXT = frozenset({MatchKind.PREFIX, MatchKind.SUFFIX, MatchKind.TEMPLATE, MatchKind.SERVICE_ACCOUNT})
"""The finders of the others need texts without asterisk and slash."""
