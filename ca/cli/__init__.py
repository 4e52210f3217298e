"""caadmin and burgee: thin clients of the APIs, one file per noun."""
