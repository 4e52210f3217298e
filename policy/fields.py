"""Takes an object apart and notes what is wrong with it, so that one reading finds everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import count

from policy.documents import Mapping, Node, escaped
from policy.model import Origin
from policy.problems import Problem, Refused, shown


@dataclass(slots=True)
class Notes:
    """What was found wrong in a text so far."""

    source: str
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def raise_for_problems(self) -> None:
        """Raises Refused if there is any."""
        if self.problems:
            raise Refused(self.problems)


@dataclass(frozen=True, slots=True)
class Place:
    """A value, and where in its object it is."""

    node: Node
    notes: Notes
    pointer: str = ""

    @property
    def origin(self) -> Origin:
        """File, line and column."""
        return Origin(self.notes.source, self.node.line, self.node.column)

    def refuse(self, code: str, message: str, hint: str = "") -> None:
        """Notes a problem here."""
        self.notes.problems.append(Problem(code, message, self.origin, self.pointer, hint))

    def warn(self, code: str, message: str, hint: str = "") -> None:
        """Notes what is strange, and allowed."""
        self.notes.warnings.append(Problem(code, message, self.origin, self.pointer, hint))

    def inside(self, step: str | int, node: Node) -> Place:
        """A value within this one."""
        return Place(node, self.notes, f"{self.pointer}/{escaped(step)}")

    def fields(self, known: Sequence[str]) -> dict[str, Place]:
        """The fields of a mapping that are set; null is not. Notes every other."""
        value = self.node.value
        if not isinstance(value, dict):
            self._type("a mapping")
            return {}
        for name, node in value.items():
            if name not in known:
                near = get_close_matches(name[:40], known, 1)
                hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
                self.inside(name, node).refuse("P006", f"there is no field {shown(name)} here", hint)
        return {name: self.inside(name, node) for name, node in _set(value, known)}

    def items(self) -> list[Place]:
        """The items of a list."""
        value = self.node.value
        if not isinstance(value, list):
            self._type("a list")
            return []
        return [self.inside(number, node) for number, node in zip(count(), value, strict=False)]

    def text(self) -> str | None:
        """A text; None, and noted, where it is something else."""
        if isinstance(self.node.value, str):
            if not self.node.value.isascii() and any(
                "\ud800" <= character <= "\udfff" for character in self.node.value
            ):
                self.refuse("P001", "half of a surrogate pair is no text")
                return None
            return self.node.value
        self._type("a text", "put it into quotes" if self.node.kind in ("a number", "a boolean") else "")
        return None

    def filled(self) -> str | None:
        """A text with something in it."""
        text = self.text()
        if text == "":
            self.refuse("P113", "an empty value is not allowed", "`*` is any value")
        return text or None

    def texts(self) -> Iterator[tuple[Place, str]]:
        """The texts of a list that have something in them."""
        for item in self.items():
            if text := item.filled():
                yield item, text

    def boolean(self) -> bool:
        """A boolean."""
        if not isinstance(self.node.value, bool):
            self._type("a boolean")
        return self.node.value is True

    def labels(self) -> tuple[tuple[str, str], ...]:
        """A mapping of texts, sorted."""
        if not isinstance(self.node.value, dict):
            self._type("a mapping")
            return ()
        found = ((name, self.inside(name, node).text()) for name, node in self.node.value.items())
        return tuple(sorted((name, text) for name, text in found if text is not None))

    def _type(self, wanted: str, hint: str = "") -> None:
        self.refuse("P005", f"must be {wanted}, not {self.node.kind}", hint)


def _set(value: Mapping, known: Sequence[str]) -> Iterator[tuple[str, Node]]:
    return ((name, node) for name, node in value.items() if name in known and node.value is not None)
