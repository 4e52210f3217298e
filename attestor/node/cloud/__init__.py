"""What the attestors of the big clouds share: signed documents, metadata services, and what their APIs are asked."""
