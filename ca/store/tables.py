"""The tables, as SQLAlchemy Core sees them; migrations must arrive at exactly these.

Times are whole microseconds since 1970 (UTC) in BIGINT columns: both databases keep them alike, and a year before
1970 is just a negative number. Text that may be longer than an index entry (selectors) is matched by its digest.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table, Text

metadata = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s"}
)

store = Table(
    "store",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("epoch", String(64), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("compacted", BigInteger, nullable=False),  # the highest revision whose change row is gone
    Column("token_id_key", LargeBinary(32)),
)

changes = Table(
    "changes",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("name", Text, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("mark", String(16), nullable=False, server_default=""),  # random; empty on rows older than this column
)

# `position` is the revision that created the row: unique, never reused, and its order is the order of creation.
entries = Table(
    "entries",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("id", Text, nullable=False, unique=True),
    Column("spiffe_id", Text, nullable=False, index=True),
    Column("parent_id", Text, nullable=False, index=True),
    Column("similarity", LargeBinary(32), nullable=False, index=True),  # of spiffe_id, parent_id and selectors
    Column("selectors", Text, nullable=False),  # JSON, sorted [[type, value], …]
    Column("selector_count", Integer, nullable=False),
    Column("federates_with", Text, nullable=False),  # JSON, sorted names
    Column("federates_with_count", Integer, nullable=False),
    Column("dns_names", Text, nullable=False),  # JSON, in the order given
    Column("x509_svid_ttl_seconds", BigInteger, nullable=False),
    Column("jwt_svid_ttl_seconds", BigInteger, nullable=False),
    Column("admin", Boolean, nullable=False),
    Column("downstream", Boolean, nullable=False),
    Column("expires_at", BigInteger),
    Column("revision_number", BigInteger, nullable=False),
    Column("store_svid", Boolean, nullable=False),
    Column("hint", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("disable_x509_svid_prefetch", Boolean, nullable=False),
    Column("jwt_svid_include_jti", Boolean, nullable=False),
)

entry_selectors = Table(
    "entry_selectors",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", LargeBinary(16), primary_key=True),
    Index("ix_entry_selectors_digest", "digest", "position"),
)

entry_federations = Table(
    "entry_federations",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("trust_domain", String(255), primary_key=True),
    Index("ix_entry_federations_trust_domain", "trust_domain", "position"),
)

agents = Table(
    "agents",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("id", Text, nullable=False, unique=True),
    Column("attestation_type", Text, nullable=False),
    Column("serial", String(64), nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("pending_serial", String(64), nullable=False),
    Column("pending_not_after", BigInteger),
    Column("selectors", Text, nullable=False),
    Column("selector_count", Integer, nullable=False),
    Column("reattestable", Boolean, nullable=False),
    Column("banned", Boolean, nullable=False),
    Column("agent_version", Text, nullable=False),
)

agent_selectors = Table(
    "agent_selectors",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", LargeBinary(16), primary_key=True),
    Index("ix_agent_selectors_digest", "digest", "position"),
)

# Tokens are kept as SHA-256 only: who reads this table (or a backup of it) cannot attest with them. The entry of one
# with an alias names it in clear, see tokens.py.
join_tokens = Table(
    "join_tokens",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Column("agent_id", Text),
    Column("used_at", BigInteger),  # of its last use, after which it is used up
    Column("name", String(64)),
    Column("uses", Integer, nullable=False, server_default="1"),  # how many agents it makes
    Column("revoked_at", BigInteger),
)

# Each use of a token, with the key that it was for: who has both may ask again, for a while.
join_token_uses = Table(
    "join_token_uses",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # from 1
    Column("used_at", BigInteger, nullable=False),
    Column("used_key_sha256", LargeBinary(32)),
    Column("agent_path", Text, nullable=False, index=True),  # empty where it was used before this was written down
)

used_evidence = Table(  # what proves a node or a caller once
    "used_evidence",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("until", BigInteger, nullable=False, index=True),
    Column("used_at", BigInteger, nullable=False),
    Column("used_key_sha256", LargeBinary(32)),
)

bundles = Table(
    "bundles",
    metadata,
    Column("trust_domain", String(255), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("sequence_number", BigInteger, nullable=False),
    Column("refresh_hint_seconds", BigInteger, nullable=False),
    Column("authorities", Text, nullable=False),  # JSON, see bundles.py
)

authorities = Table(
    "authorities",
    metadata,
    Column("server", String(255), primary_key=True),
    Column("authority_id", String(255), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("key_id", String(255), nullable=False),
    Column("key_type", String(32), nullable=False),
    Column("status", String(16), nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("tainted", Boolean, nullable=False),
    Column("material", LargeBinary, nullable=False),  # certificate (x509) or SubjectPublicKeyInfo (jwt), DER
    Column("chain", Text, nullable=False, server_default="[]"),  # JSON, base64 of DER, towards the root and without it
    Column("upstream_authority_id", String(255), nullable=False, server_default=""),
    Column("prepared_at", BigInteger),
    Column("activated_at", BigInteger),
    Column("tainted_at", BigInteger),
    Column("revoked_at", BigInteger),
)

# Private keys that are being made, or are to be deleted; whatever interrupts that, they are found here.
authority_keys = Table(
    "authority_keys",
    metadata,
    Column("server", String(255), primary_key=True),
    Column("key_id", String(255), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("since", BigInteger, nullable=False),
)

# What the upstream of each server publishes: roots, and JWT authorities where it keeps them.
upstream_authorities = Table(
    "upstream_authorities",
    metadata,
    Column("server", String(255), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("authority_id", String(255), primary_key=True),
    Column("material_sha256", LargeBinary(32), primary_key=True),  # a root made anew keeps its key, and so its id
    Column("position", Integer, nullable=False),
    Column("material", LargeBinary, nullable=False),
    Column("expires_at", BigInteger),
    Column("tainted", Boolean, nullable=False),
    Column("gone_at", BigInteger),
    Column("revoked_at", BigInteger),
)

# One row per batch of signatures, not per signature.
issuance = Table(
    "issuance",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("recorded_at", BigInteger, nullable=False),
    Column("count", Integer, nullable=False),
    Column("first_not_before", BigInteger, nullable=False),
    Column("last_not_after", BigInteger, nullable=False, index=True),
    Column("authorities", Text, nullable=False),  # which batches to open: authority ids, one a line
    Column("agents", Text, nullable=False),  # the same for agents
    Column("body", LargeBinary, nullable=False),  # see issuance_codec.py
    sqlite_autoincrement=True,
)

# Every administrative call: a row before it runs, filled in before it is answered.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False, index=True),
    Column("server", String(255), nullable=False),
    Column("actor", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("call", String(255), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("code", String(32), nullable=False),  # empty until the call has ended
    Column("reason", String(64), nullable=False),
    Column("subjects", Text, nullable=False),  # JSON, [[name, about, code], …]
    sqlite_autoincrement=True,
)
