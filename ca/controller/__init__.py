"""ca.controller: entries from Kubernetes; a client of the Kubernetes API and of the server's admin API."""
