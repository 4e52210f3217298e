"""A tiny HTTP/1.1 endpoint for /metrics, /live and /ready."""
