"""Templates of ClusterSPIFFEIDs: fields of pod, node and cluster become an ID, a DNS name or a selector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ca.errors import InvalidArgument
from ca.identity.template_blocks import If, Node, fields_in, parse_blocks
from ca.identity.template_conditions import CONDITIONS, Value
from ca.identity.template_grammar import Constant, Dialect, Expression, Field, Text, fields_of
from ca.identity.text import quote

MAX_CHARACTERS = 2048
TRUE = "true"

BOOLEANS = frozenset({"PodSpec.HostNetwork", "PodSpec.HostPID", "PodSpec.HostIPC", "NodeSpec.Unschedulable"})
"""`TRUE` among the values; not there where they are false."""
NODE_SPEC = "NodeSpec."

FIELDS = BOOLEANS | frozenset(
    {"TrustDomain", "ClusterName", "ClusterDomain", "NodeSpec.PodCIDR", "NodeSpec.ProviderID"}
    | {f"PodMeta.{name}" for name in ("Name", "GenerateName", "Namespace", "UID", "Labels.*", "Annotations.*")}
    | {f"NodeMeta.{name}" for name in ("Name", "UID", "Labels.*", "Annotations.*")}
    | {f"PodSpec.{name}" for name in ("ServiceAccountName", "DeprecatedServiceAccount", "NodeName", "NodeSelector.*")}
    | {f"PodSpec.{name}" for name in ("Hostname", "Subdomain", "SchedulerName", "PriorityClassName")}
    | {f"PodSpec.{name}" for name in ("RestartPolicy", "DNSPolicy")}
)

_DIALECT = Dialect(FIELDS, BOOLEANS, CONDITIONS, decides=True)


@dataclass(frozen=True, slots=True)
class Template:
    """One that was checked. With `path`, values that hold a slash are refused: none of them chooses a longer path."""

    text: str
    field: str
    _nodes: tuple[Node, ...]
    _path: bool

    @classmethod
    def parse(cls, text: object, field: str, *, path: bool = False) -> Template:
        """Raises InvalidArgument TEMPLATE that names `field` and the character."""
        if not isinstance(text, str) or not text:
            raise InvalidArgument(f"`{field}` is no template", reason="TEMPLATE")
        try:
            return cls(text, field, parse_blocks(text, _DIALECT), path)
        except ValueError as error:
            raise InvalidArgument(f"`{field}`: {error}", reason="TEMPLATE") from error

    @property
    def wants_node_spec(self) -> bool:
        return any(name.startswith(NODE_SPEC) for name in fields_in(self._nodes))

    def render(self, values: Mapping[str, str]) -> str:
        """Raises InvalidArgument TEMPLATE_VALUE where a value is missing, too long, or holds a slash for a path."""
        return "".join(self._rendered(self._nodes, values))

    def _rendered(self, nodes: Sequence[Node], values: Mapping[str, str]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, Text):
                yield node.value
            elif isinstance(node, If):
                yield from self._rendered(node.then if self._evaluate(node.condition, values) else node.other, values)
            else:
                yield self._value(node, values)

    def _value(self, part: Expression, values: Mapping[str, str]) -> str:
        found = self._evaluate(part, values)
        if isinstance(found, bool):
            return TRUE if found else "false"
        if found and not (self._path and "/" in found):
            return found
        names = ", ".join(f"`.{name}`" for name in sorted(fields_of(part))) or "a text"
        raise self._refused(f"{names} came out empty" if not found else f"{names} came out as {quote(found)}")

    def _evaluate(self, expression: Expression, values: Mapping[str, str]) -> Value:
        if isinstance(expression, Constant):
            return expression.value
        found: Value
        if isinstance(expression, Field):
            found = values.get(expression.name, "")  # `default` may stand for what is not there
            if expression.name in BOOLEANS:
                return found == TRUE
        else:
            arguments = [one if isinstance(one, int) else self._evaluate(one, values) for one in expression.arguments]
            found = expression.function.apply(*arguments)
        if isinstance(found, str) and len(found) > MAX_CHARACTERS:
            raise self._refused(f"a value is longer than {MAX_CHARACTERS} characters")
        return found

    def _refused(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"`{self.field}`: {what}", reason="TEMPLATE_VALUE")
