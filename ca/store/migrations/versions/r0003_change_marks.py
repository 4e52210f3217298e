"""Marks that tell two changes of one revision apart, which a restored backup can bring about.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Changes of before have the empty mark: agents that hold an epoch without one may go on from them."""
    op.add_column("changes", sa.Column("mark", sa.String(length=16), nullable=False, server_default=""))


def downgrade() -> None:
    """Without marks."""
    op.drop_column("changes", "mark")
