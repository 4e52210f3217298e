"""The server's use cases: rotate authorities, issue, attest, follow the change log; composed from the rooms below."""
