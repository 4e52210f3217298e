"""The requests that policies can tell apart, as sets that are divided by the policies' own clauses.

`patterns` says what a match is as a set of texts, `texts` finds a text that some sets have and others have not,
`literals` is a clause as a question to one attribute, `spaces` what is still possible of one attribute, `boxes` of a
whole request, `rows` what policies ask, and `search` looks for a request that some rules match and others do not.
"""
