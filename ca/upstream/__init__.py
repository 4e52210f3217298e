"""Authorities above this server's own: a certificate from a file, from Vault or OpenBao, from another server."""
