"""The book of policies: who may write them, what a write becomes, and what agents are sent."""
