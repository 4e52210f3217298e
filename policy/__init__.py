"""The policy engine: decides who may call whom."""
