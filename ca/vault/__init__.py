"""One way into Vault or OpenBao: log-in, renewal, and requests that say what was wrong."""
