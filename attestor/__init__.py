"""Attestation: which node this is, which process is calling; plugins and nothing else."""
