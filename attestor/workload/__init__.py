"""Workload attestors: which process is calling."""
