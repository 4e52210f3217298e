"""A group that can open an admin socket, of which nobody is admitted: said at the start, not at the first refusal."""

from __future__ import annotations

from ca.runtime import log

_log = log.get("admin-socket")


def warn_if_alone(group: str | None, *, admits: bool) -> None:
    """`admits`: whether anybody besides root and our own user is admitted."""
    if group is not None and not admits:
        _log.warning(
            "the admin socket's group can open it, and nobody of the group is admitted",
            reason="ADMIN_GROUP_ALONE",
            admin_group=group,
            hint="name its members in `admin_socket.admin_uids`",
        )
