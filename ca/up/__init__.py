"""`burgee up`: server, agent and a two-service demo in one process tree, for a first look and for tests."""
