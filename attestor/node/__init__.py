"""Node attestors: both halves of a method in one file."""
