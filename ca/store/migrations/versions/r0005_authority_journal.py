"""The journal of authorities: times of each step, chains below an upstream, keys in between, an upstream's roots.

Revision ID: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TIMES = ("prepared_at", "activated_at", "tainted_at", "revoked_at")


def upgrade() -> None:
    """Of authorities that are there it is known when they were published, and that they signed soon after."""
    op.add_column("authorities", sa.Column("chain", sa.Text(), nullable=False, server_default="[]"))
    op.add_column(
        "authorities", sa.Column("upstream_authority_id", sa.String(length=255), nullable=False, server_default="")
    )
    for name in _TIMES:
        op.add_column("authorities", sa.Column(name, sa.BigInteger(), nullable=True))
    op.execute("UPDATE authorities SET prepared_at = not_before")
    op.execute("UPDATE authorities SET activated_at = not_before WHERE status <> 'prepared'")
    op.create_table(
        "authority_keys",
        sa.Column("server", sa.String(length=255), nullable=False),
        sa.Column("key_id", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("server", "key_id"),
    )
    op.create_table(
        "upstream_authorities",
        sa.Column("server", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("authority_id", sa.String(length=255), nullable=False),
        sa.Column("material_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("material", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("tainted", sa.Boolean(), nullable=False),
        sa.Column("gone_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("server", "kind", "authority_id", "material_sha256"),
    )


def downgrade() -> None:
    """What was revoked is forgotten: it is in no bundle."""
    op.drop_table("upstream_authorities")
    op.drop_table("authority_keys")
    op.execute("DELETE FROM authorities WHERE status = 'revoked'")
    for name in (*_TIMES, "upstream_authority_id", "chain"):
        op.drop_column("authorities", name)
