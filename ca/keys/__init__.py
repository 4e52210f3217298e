"""Key managers: where the signing keys of the authority live."""
