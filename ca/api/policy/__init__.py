"""Faces of policy for those who write, read and ask: REST, AuthZEN and Envoy's check."""
