"""Identity as frozen values: SPIFFE ID, selector, registration entry, SVIDs, trust bundle."""
