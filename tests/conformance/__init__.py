"""Other people's code judges our wires: SPIRE's API SDK, go-spiffe, java-spiffe and grpcurl."""
