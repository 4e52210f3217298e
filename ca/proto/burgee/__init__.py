"""Our own messages: the push service, administration, and the Workload API under a package of our own."""
