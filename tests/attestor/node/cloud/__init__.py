"""What the clouds' attestors share."""
