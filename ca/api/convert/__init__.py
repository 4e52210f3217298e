"""Wire messages to values and back; what the wire may say is checked here, what the domain allows is checked inside."""
