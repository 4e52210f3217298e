"""The store: entries, agents, tokens, bundles, authorities, issuance records and the change log."""
