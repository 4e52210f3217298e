"""Finds plugins by entry point, as a stranger's package would offer them."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from ca.errors import ConfigError

T = TypeVar("T")

NODE_ATTESTORS = "burgee.node_attestors"
WORKLOAD_ATTESTORS = "burgee.workload_attestors"
KEY_MANAGERS = "burgee.key_managers"
UPSTREAM_AUTHORITIES = "burgee.upstream_authorities"
BUNDLE_PUBLISHERS = "burgee.bundle_publishers"


def names(group: str) -> tuple[str, ...]:
    """The plugins that are installed in a group, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


def load(group: str, name: str, expected: type[T]) -> T:
    """Import the plugin `name` of `group` and check that it is an `expected`.

    Raises ConfigError: PLUGIN_UNKNOWN (with the nearest name), PLUGIN_AMBIGUOUS, PLUGIN_BROKEN.
    """
    plugin = _only(group, name)
    try:
        found = plugin.load()
    except Exception as error:
        raise ConfigError(f"plugin `{name}` of {group} cannot be loaded: {error}", reason="PLUGIN_BROKEN") from error
    if not isinstance(found, expected):
        raise ConfigError(
            f"plugin `{name}` of {group} is a {type(found).__name__}, not a {expected.__name__}",
            reason="PLUGIN_BROKEN",
            hint=f"`{plugin.value}` must name a {expected.__name__}",
        )
    return found


def _only(group: str, name: str) -> EntryPoint:
    found = {point.value: point for point in entry_points(group=group, name=name)}
    if not found:
        import difflib  # for mistakes alone

        known = names(group)
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"installed are: {', '.join(known) or 'none'}"
        raise ConfigError(f"there is no plugin `{name}` in {group}", reason="PLUGIN_UNKNOWN", hint=hint)
    if len(found) > 1:
        raise ConfigError(
            f"plugin `{name}` of {group} is offered by {len(found)} packages: {', '.join(sorted(found))}",
            reason="PLUGIN_AMBIGUOUS",
        )
    return next(iter(found.values()))
