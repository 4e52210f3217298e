"""Istio's certificate service, written from its field tables."""
