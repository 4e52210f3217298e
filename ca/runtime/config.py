"""Strict configuration: YAML in, frozen models out, errors that name line and nearest key."""
