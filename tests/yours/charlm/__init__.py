"""A user's own package: a transformer that reads Python's documentation, character by character."""
