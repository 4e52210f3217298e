"""The certificate authority: mints short-lived SPIFFE identities and keeps what was issued."""
