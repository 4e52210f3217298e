"""Texts with asterisks, compared in linear time: no regular expression is ever made of what a policy says."""

from __future__ import annotations

from collections.abc import Callable

Test = Callable[[str], bool]

NAMESPACE_MARK = "/ns/"


def glob(pattern: str) -> Test:
    """Whether a text is `pattern`, each `*` of which stands for any text, also none."""
    first, *rest = pattern.split("*")
    if not rest:
        return lambda text: text == pattern
    *middle, last = rest
    shortest = len(first) + len(last)

    def test(text: str) -> bool:
        if len(text) < shortest or not text.startswith(first) or not text.endswith(last):
            return False
        at, end = len(first), len(text) - len(last)
        for part in middle:  # the leftmost place leaves most for the others
            found = text.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True

    return test


def namespace_test(pattern: str) -> Test:
    """A SPIFFE ID with `/ns/<pattern>/` in it, wherever that is."""
    return glob(f"*{NAMESPACE_MARK}{pattern}/*")


def trust_domain_test(pattern: str) -> Test:
    """A SPIFFE ID of that trust domain; asterisks stop at its end."""
    test = glob(pattern)

    def of_principal(text: str) -> bool:
        domain, slash, _ = text.partition("/")
        return bool(slash) and test(domain)

    return of_principal


def service_account_test(text: str) -> Test:
    """`<anything>/ns/<namespace>/[<anything>/]sa/<account>[/<anything>]`."""
    namespace, _, account = text.partition("/")
    start, mark = f"{NAMESPACE_MARK}{namespace}/", f"sa/{account}"

    def test(text: str) -> bool:
        if (begin := text.find(start, 1)) < 0:
            return False
        begin += len(start)
        at = text.find(mark, begin)
        while at >= 0:
            end = at + len(mark)
            whole = end == len(text) or (text[end] == "/" and end + 1 < len(text))
            if whole and (at == begin or (at >= begin + 2 and text[at - 1] == "/")):
                return True
            at = text.find(mark, at + 1)
        return False

    return test
