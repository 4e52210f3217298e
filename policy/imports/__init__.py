"""Others' policies as ours, with everything that could not be said told as a loss."""
