"""Pure issuing: profile, lint, one-use token, signature, re-check; every function takes `now`."""
