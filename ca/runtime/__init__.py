"""What every process needs: configuration, clock, log, metrics, health, gate, plugins, tasks."""
