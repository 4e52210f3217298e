"""Messages and services of SPIRE, written from its published field tables."""
