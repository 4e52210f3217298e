"""Templates of ClusterSPIFFEIDs: fields of pod, node and cluster become an ID, a DNS name or a selector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ca.errors import InvalidArgument
from ca.identity.template_grammar import Constant, Expression, Field, Text, fields_of, parse
from ca.identity.text import quote

MAX_CHARACTERS = 2048

FIELDS = frozenset(
    {"TrustDomain", "ClusterName", "ClusterDomain"}
    | {f"PodMeta.{name}" for name in ("Name", "Namespace", "UID", "Labels.*", "Annotations.*")}
    | {f"NodeMeta.{name}" for name in ("Name", "UID", "Labels.*", "Annotations.*")}
    | {
        f"PodSpec.{name}"
        for name in ("ServiceAccountName", "NodeName", "Hostname", "Subdomain", "SchedulerName", "PriorityClassName")
    }
)


@dataclass(frozen=True, slots=True)
class Template:
    """One that was checked. With `path`, values that hold a slash are refused: none of them chooses a longer path."""

    text: str
    field: str
    _parts: tuple[Text | Expression, ...]
    _path: bool

    @classmethod
    def parse(cls, text: object, field: str, *, path: bool = False) -> Template:
        """Raises InvalidArgument TEMPLATE that names `field` and the character."""
        if not isinstance(text, str) or not text:
            raise InvalidArgument(f"`{field}` is no template", reason="TEMPLATE")
        try:
            return cls(text, field, parse(text, FIELDS), path)
        except ValueError as error:
            raise InvalidArgument(f"`{field}`: {error}", reason="TEMPLATE") from error

    def render(self, values: Mapping[str, str]) -> str:
        """Raises InvalidArgument TEMPLATE_VALUE where a value is missing, too long, or holds a slash for a path."""
        return "".join(part.value if isinstance(part, Text) else self._value(part, values) for part in self._parts)

    def _value(self, part: Expression, values: Mapping[str, str]) -> str:
        found = self._evaluate(part, values)
        if found and not (self._path and "/" in found):
            return found
        names = ", ".join(f"`.{name}`" for name in sorted(fields_of(part))) or "a text"
        raise self._refused(f"{names} came out empty" if not found else f"{names} came out as {quote(found)}")

    def _evaluate(self, expression: Expression, values: Mapping[str, str]) -> str:
        if isinstance(expression, Constant):
            return expression.value
        if isinstance(expression, Field):
            found = values.get(expression.name, "")  # `default` may stand for what is not there
        else:
            arguments = [one if isinstance(one, int) else self._evaluate(one, values) for one in expression.arguments]
            found = expression.function.apply(*arguments)
        if len(found) > MAX_CHARACTERS:
            raise self._refused(f"a value is longer than {MAX_CHARACTERS} characters")
        return found

    def _refused(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"`{self.field}`: {what}", reason="TEMPLATE_VALUE")
