"""Used join tokens stay for a while, with the key they were used for, so that a lost answer can be given again.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Tokens that are there are unused."""
    op.add_column("join_tokens", sa.Column("used_at", sa.BigInteger(), nullable=True))
    op.add_column("join_tokens", sa.Column("used_key_sha256", sa.LargeBinary(length=32), nullable=True))


def downgrade() -> None:
    """Used tokens are gone, as they were before."""
    op.execute("DELETE FROM join_tokens WHERE used_at IS NOT NULL")
    op.drop_column("join_tokens", "used_key_sha256")
    op.drop_column("join_tokens", "used_at")
