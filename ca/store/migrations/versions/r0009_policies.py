"""The book of policies: objects, what each revision did to them, grants, and what writes were answered.

Revision ID: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TABLES = (
    "policies",
    "policy_revisions",
    "policy_history",
    "policy_grants",
    "policy_answers",
    "policy_documents",
)


def upgrade() -> None:
    """Nothing was kept of policies before."""
    op.create_table(
        "policies",
        *_key(),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
    )
    op.create_table(
        "policy_revisions",
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
    )
    op.create_table(
        "policy_history",
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        *_key(),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("before_revision", sa.BigInteger(), nullable=True),
        sa.Column("before_owner", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.Column("after_owner", sa.Text(), nullable=True),
    )
    op.create_index("ix_policy_history_key", "policy_history", ["kind", "namespace", "name"])
    op.create_table(
        "policy_grants",
        sa.Column("name", sa.String(length=253), primary_key=True),
        sa.Column("spiffe_id", sa.Text(), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("namespaces", sa.Text(), nullable=False),
    )
    op.create_table(
        "policy_answers",
        sa.Column("digest", sa.LargeBinary(length=32), primary_key=True),
        sa.Column("request_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("until", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_policy_answers_until", "policy_answers", ["until"])
    op.create_table(
        "policy_documents",
        sa.Column("kind", sa.String(length=16), primary_key=True),
        sa.Column("name_sha256", sa.LargeBinary(length=32), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
    )


def _key() -> tuple[sa.Column[str], ...]:
    return (
        sa.Column("kind", sa.String(length=32), primary_key=True),
        sa.Column("namespace", sa.String(length=63), primary_key=True),
        sa.Column("name", sa.String(length=253), primary_key=True),
    )


def downgrade() -> None:
    """An older version knows no policies: agents keep what they hold until they are told to let go of it."""
    op.drop_index("ix_policy_answers_until", table_name="policy_answers")
    op.drop_index("ix_policy_history_key", table_name="policy_history")
    for table in reversed(TABLES):
        op.drop_table(table)
