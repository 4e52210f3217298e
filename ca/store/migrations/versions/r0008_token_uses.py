"""Join tokens have names, serve several times where they are made so, and can be revoked.

Revision ID: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Tokens that are there serve once; of used ones nobody wrote down which agent they made."""
    op.add_column("join_tokens", sa.Column("name", sa.String(length=64), nullable=True))
    op.add_column("join_tokens", sa.Column("uses", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("join_tokens", sa.Column("revoked_at", sa.BigInteger(), nullable=True))
    op.create_table(
        "join_token_uses",
        sa.Column("digest", sa.LargeBinary(length=32), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.Column("used_key_sha256", sa.LargeBinary(length=32), nullable=True),
        sa.Column("agent_path", sa.Text(), nullable=False),
    )
    op.create_index("ix_join_token_uses_agent_path", "join_token_uses", ["agent_path"])
    op.execute(
        "INSERT INTO join_token_uses (digest, number, used_at, used_key_sha256, agent_path) "
        "SELECT digest, 1, used_at, used_key_sha256, '' FROM join_tokens WHERE used_at IS NOT NULL"
    )
    op.drop_column("join_tokens", "used_key_sha256")


def downgrade() -> None:
    """What cannot be said without the columns does not serve: tokens of several uses, and revoked ones."""
    op.add_column("join_tokens", sa.Column("used_key_sha256", sa.LargeBinary(length=32), nullable=True))
    op.execute("DELETE FROM join_tokens WHERE uses > 1 OR revoked_at IS NOT NULL")
    op.execute(
        "UPDATE join_tokens SET used_key_sha256 = "
        "(SELECT used_key_sha256 FROM join_token_uses AS used WHERE used.digest = join_tokens.digest)"
    )
    op.drop_index("ix_join_token_uses_agent_path", table_name="join_token_uses")
    op.drop_table("join_token_uses")
    op.drop_column("join_tokens", "revoked_at")
    op.drop_column("join_tokens", "uses")
    op.drop_column("join_tokens", "name")
