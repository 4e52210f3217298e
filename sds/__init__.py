"""The node agent: Workload API, Envoy SDS and local decisions."""
