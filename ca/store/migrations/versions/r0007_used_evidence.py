"""Evidence that proves something once is remembered until it has ended by itself.

Revision ID: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing has been used yet."""
    op.create_table(
        "used_evidence",
        sa.Column("digest", sa.LargeBinary(length=32), primary_key=True),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.Column("used_key_sha256", sa.LargeBinary(length=32), nullable=True),
    )
    op.create_index("ix_used_evidence_until", "used_evidence", ["until"])


def downgrade() -> None:
    """What was used and has not ended serves once more."""
    op.drop_index("ix_used_evidence_until", table_name="used_evidence")
    op.drop_table("used_evidence")
