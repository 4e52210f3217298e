"""`caadmin` and `burgee`: thin clients of the APIs for people and scripts."""
