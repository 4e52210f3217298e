"""One command from nothing to working mTLS: supervises server, agent and the demo."""
