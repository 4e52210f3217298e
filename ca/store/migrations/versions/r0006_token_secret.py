"""Join tokens are called by a keyed digest: nobody who reads their IDs can try values against them.

Revision ID: 0006
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A store that is there gets its key; a new one is given it with its first row."""
    op.add_column("store", sa.Column("token_id_key", sa.LargeBinary(length=32), nullable=True))
    op.execute(sa.text("UPDATE store SET token_id_key = :key").bindparams(key=secrets.token_bytes(32)))


def downgrade() -> None:
    """Tokens go on working; their IDs change."""
    op.drop_column("store", "token_id_key")
