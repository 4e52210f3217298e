"""The authority's state machine: slots prepared, active, old, tainted, and what is due when."""
