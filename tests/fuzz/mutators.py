"""Mutations that know a format, so that what comes out still gets past lengths and signatures."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz import keys
from tests.fuzz.harness import Mutate

MAX_DEPTH = 12
_TAGS = (1, 2, 3, 4, 5, 6, 0x0C, 0x13, 0x14, 0x16, 0x17, 0x18, 0x1E, 0x30, 0x31, 0x80, 0x82, 0x86, 0xA0, 0xA3, 0x1F)


@dataclass
class Node:
    """A value of DER; `children` when its content is again values, also inside of an OCTET STRING."""

    tag: int
    content: bytes
    children: list[Node] | None = None

    def encode(self, rng: random.Random) -> bytes:
        content = self.content if self.children is None else b"".join(child.encode(rng) for child in self.children)
        return bytes([self.tag]) + _length(len(content), rng) + content


def _length(size: int, rng: random.Random) -> bytes:
    """Mostly right; rarely a longer spelling, an indefinite one, or a lie."""
    dice = rng.random()
    if dice < 0.004:
        return rng.choice((b"\x80", b"\xff", b"\x84\xff\xff\xff\xff", b"\x85\x00\x00\x00\x00\x01"))
    if dice < 0.008:
        size = max(0, size + rng.choice((-1, 1)))
    if size < 0x80 and dice > 0.012:
        return bytes([size])
    octets = max(1, (size.bit_length() + 7) // 8)
    return bytes([0x80 | octets]) + size.to_bytes(octets, "big")


def parse(data: bytes, depth: int = 0) -> list[Node] | None:
    """Values that fill `data` exactly, or None."""
    found: list[Node] = []
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            return None
        tag, size, at = data[at], data[at + 1], at + 2
        if size >= 0x80:
            octets = size & 0x7F
            if not 0 < octets <= 3 or at + octets > len(data):
                return None
            size, at = int.from_bytes(data[at : at + octets], "big"), at + octets
        if at + size > len(data):
            return None
        content, at = data[at : at + size], at + size
        nested = parse(content, depth + 1) if depth < MAX_DEPTH and (tag & 0x20 or tag == 4) and content else None
        found.append(Node(tag, content, nested))
    return found


def _every(nodes: list[Node]) -> list[tuple[list[Node], int]]:
    """Each value as its list and its place in that."""
    found: list[tuple[list[Node], int]] = []
    for at, node in enumerate(nodes):
        found.append((nodes, at))
        found += _every(node.children or [])
    return found


def mutate_der(data: bytes, max_bytes: int, rng: random.Random, default: Mutate) -> bytes:
    """A few changes to the tree of values; bytes that are no such tree get the fuzzer's own mutation."""
    nodes = parse(data)
    if not nodes:
        return default(data, max_bytes)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = _every(nodes)
        if not places:
            break
        _change(places, rng, default)
    return b"".join(node.encode(rng) for node in nodes)[:max_bytes]


def _change(places: list[tuple[list[Node], int]], rng: random.Random, default: Mutate) -> None:
    siblings, at = rng.choice(places)
    node = siblings[at]
    match rng.randrange(8):
        case 0:
            del siblings[at]
        case 1:
            siblings.insert(at, node)
        case 2:
            other = rng.randrange(len(siblings))
            siblings[at], siblings[other] = siblings[other], siblings[at]
        case 3:
            node.tag = rng.choice(_TAGS)
        case 4:
            there, index = rng.choice(places)
            siblings.insert(at, Node(there[index].tag, there[index].content, None))
        case 5:
            siblings[at] = Node(rng.choice((0x30, 0x31, 4, 0xA0, 0xA3)), b"", [node])
        case _:
            content = node.content if node.children is None else node.encode(rng)[2:]
            siblings[at] = Node(node.tag, default(content or b"\x00", len(content) + 64))


def resigning(name: str) -> Callable[[bytes, int, int, Mutate], bytes]:
    """A mutator of signed DER (certificates, requests): changes what is signed and signs it anew, mostly."""

    def mutate(data: bytes, max_bytes: int, seed: int, default: Mutate) -> bytes:
        rng = random.Random(seed)
        outer = parse(data)
        if rng.random() < 0.15 or not outer or outer[0].children is None or len(outer[0].children) != 3:
            return mutate_der(data, max_bytes, rng, default)
        quiet = random.Random(0)
        quiet.random = lambda: 1.0  # type: ignore[method-assign]  # lengths stay right outside of what is changed
        body = mutate_der(outer[0].children[0].encode(quiet), max_bytes, rng, default)
        changed = keys.signed(name, body)
        return changed if len(changed) <= max_bytes else data

    return mutate


def structured(data: bytes, max_bytes: int, seed: int, default: Mutate) -> bytes:
    """Plain DER, without a signature."""
    return mutate_der(data, max_bytes, random.Random(seed), default)
