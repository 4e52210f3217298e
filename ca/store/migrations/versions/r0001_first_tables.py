"""The first tables.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From nothing."""
    op.create_table(
        "agent_selectors",
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.LargeBinary(length=16), nullable=False),
        sa.PrimaryKeyConstraint("position", "digest"),
    )
    op.create_index("ix_agent_selectors_digest", "agent_selectors", ["digest", "position"], unique=False)
    op.create_table(
        "agents",
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("attestation_type", sa.Text(), nullable=False),
        sa.Column("serial", sa.String(length=64), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("pending_serial", sa.String(length=64), nullable=False),
        sa.Column("pending_not_after", sa.BigInteger(), nullable=True),
        sa.Column("selectors", sa.Text(), nullable=False),
        sa.Column("selector_count", sa.Integer(), nullable=False),
        sa.Column("reattestable", sa.Boolean(), nullable=False),
        sa.Column("banned", sa.Boolean(), nullable=False),
        sa.Column("agent_version", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("position"),
        sa.UniqueConstraint("id", name=op.f("uq_agents_id")),
    )
    op.create_table(
        "authorities",
        sa.Column("server", sa.String(length=255), nullable=False),
        sa.Column("authority_id", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("key_id", sa.String(length=255), nullable=False),
        sa.Column("key_type", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("tainted", sa.Boolean(), nullable=False),
        sa.Column("material", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("server", "authority_id"),
    )
    op.create_table(
        "bundles",
        sa.Column("trust_domain", sa.String(length=255), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("sequence_number", sa.BigInteger(), nullable=False),
        sa.Column("refresh_hint_seconds", sa.BigInteger(), nullable=False),
        sa.Column("authorities", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("trust_domain"),
    )
    op.create_table(
        "changes",
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("revision"),
    )
    op.create_table(
        "entries",
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("spiffe_id", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=False),
        sa.Column("similarity", sa.LargeBinary(length=32), nullable=False),
        sa.Column("selectors", sa.Text(), nullable=False),
        sa.Column("selector_count", sa.Integer(), nullable=False),
        sa.Column("federates_with", sa.Text(), nullable=False),
        sa.Column("federates_with_count", sa.Integer(), nullable=False),
        sa.Column("dns_names", sa.Text(), nullable=False),
        sa.Column("x509_svid_ttl_seconds", sa.BigInteger(), nullable=False),
        sa.Column("jwt_svid_ttl_seconds", sa.BigInteger(), nullable=False),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("downstream", sa.Boolean(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revision_number", sa.BigInteger(), nullable=False),
        sa.Column("store_svid", sa.Boolean(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("disable_x509_svid_prefetch", sa.Boolean(), nullable=False),
        sa.Column("jwt_svid_include_jti", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("position"),
        sa.UniqueConstraint("id", name=op.f("uq_entries_id")),
    )
    op.create_index(op.f("ix_entries_parent_id"), "entries", ["parent_id"], unique=False)
    op.create_index(op.f("ix_entries_similarity"), "entries", ["similarity"], unique=False)
    op.create_index(op.f("ix_entries_spiffe_id"), "entries", ["spiffe_id"], unique=False)
    op.create_table(
        "entry_federations",
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("trust_domain", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("position", "trust_domain"),
    )
    op.create_index(
        "ix_entry_federations_trust_domain", "entry_federations", ["trust_domain", "position"], unique=False
    )
    op.create_table(
        "entry_selectors",
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.LargeBinary(length=16), nullable=False),
        sa.PrimaryKeyConstraint("position", "digest"),
    )
    op.create_index("ix_entry_selectors_digest", "entry_selectors", ["digest", "position"], unique=False)
    op.create_table(
        "issuance",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("first_not_before", sa.BigInteger(), nullable=False),
        sa.Column("last_not_after", sa.BigInteger(), nullable=False),
        sa.Column("authorities", sa.Text(), nullable=False),
        sa.Column("agents", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_issuance_last_not_after"), "issuance", ["last_not_after"], unique=False)
    op.create_table(
        "join_tokens",
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index(op.f("ix_join_tokens_expires_at"), "join_tokens", ["expires_at"], unique=False)
    op.create_table(
        "store",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("compacted", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    """To nothing."""
    op.drop_table("store")
    op.drop_index(op.f("ix_join_tokens_expires_at"), table_name="join_tokens")
    op.drop_table("join_tokens")
    op.drop_index(op.f("ix_issuance_last_not_after"), table_name="issuance")
    op.drop_table("issuance")
    op.drop_index("ix_entry_selectors_digest", table_name="entry_selectors")
    op.drop_table("entry_selectors")
    op.drop_index("ix_entry_federations_trust_domain", table_name="entry_federations")
    op.drop_table("entry_federations")
    op.drop_index(op.f("ix_entries_spiffe_id"), table_name="entries")
    op.drop_index(op.f("ix_entries_similarity"), table_name="entries")
    op.drop_index(op.f("ix_entries_parent_id"), table_name="entries")
    op.drop_table("entries")
    op.drop_table("changes")
    op.drop_table("bundles")
    op.drop_table("authorities")
    op.drop_table("agents")
    op.drop_index("ix_agent_selectors_digest", table_name="agent_selectors")
    op.drop_table("agent_selectors")
