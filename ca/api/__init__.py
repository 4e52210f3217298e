"""The server's faces: one servicer per SPIRE service, the push service, HTTP."""
