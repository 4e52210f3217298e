"""The tables of the book of policies: what holds now, and what each revision did."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, String, Table, Text

from ca.store.tables import metadata

policies = Table(
    "policies",
    metadata,
    Column("kind", String(32), primary_key=True),
    Column("namespace", String(63), primary_key=True),
    Column("name", String(253), primary_key=True),
    Column("body", Text, nullable=False),  # the whole object: canonical JSON
    Column("revision", BigInteger, nullable=False),  # in which it came to be so
    Column("owner", Text, nullable=False),  # the mark of who applies it; empty for one written by hand
)

policy_revisions = Table(
    "policy_revisions",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("count", Integer, nullable=False),  # of objects that it changed
)

# What was there before is kept with what came: so a revision is undone, and forgotten, by itself.
policy_history = Table(
    "policy_history",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(32), primary_key=True),
    Column("namespace", String(63), primary_key=True),
    Column("name", String(253), primary_key=True),
    Column("before", Text),
    Column("before_revision", BigInteger),
    Column("before_owner", Text),
    Column("after", Text),
    Column("after_owner", Text),
    Index("ix_policy_history_key", "kind", "namespace", "name"),
)

policy_grants = Table(
    "policy_grants",
    metadata,
    Column("name", String(253), primary_key=True),
    Column("spiffe_id", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("namespaces", Text, nullable=False),  # JSON
)

# Writes that may be sent again: by caller and key.
policy_answers = Table(
    "policy_answers",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("request_sha256", LargeBinary(32), nullable=False),
    Column("number", BigInteger),  # of the revision that was made; none where nothing changed
    Column("until", BigInteger, nullable=False, index=True),
)

# Texts of which there is one each, such as the invariants; and key sets, by where they were fetched.
policy_documents = Table(
    "policy_documents",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("name_sha256", LargeBinary(32), primary_key=True),
    Column("name", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)
