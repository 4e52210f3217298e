"""Brings a database to the newest schema, from nothing or from any earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from ca.errors import FailedPrecondition

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0009"
"""The newest revision. Kept here so that an ordinary start need not load Alembic (a test compares the two)."""

# Any number that nothing else in this database uses for an advisory lock.
_MIGRATION_LOCK = 0x62757267


def migrate(connection: Connection) -> None:
    """Upgrade to HEAD inside the connection's transaction. Concurrent servers wait for one another (PostgreSQL)."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    found = current(connection)
    if found == HEAD:
        return
    if found is not None and found > HEAD:
        raise FailedPrecondition(
            f"the store was written by a newer version (schema {found}, known here: {HEAD})",
            reason="STORE_NEWER",
            hint="start the newer version, or restore the backup that was taken before the upgrade",
        )
    from alembic import command  # imported here: it costs a start 0.1 s that only a migration needs to pay

    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def current(connection: Connection) -> str | None:
    """The database's revision; None for a database that was never migrated."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def alembic_config() -> Config:
    """Alembic's configuration for the migrations that are packaged here; no ini file."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config
