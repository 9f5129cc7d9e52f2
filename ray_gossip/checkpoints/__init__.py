"""Checkpoints of a run: a folder for each, with a file of every peer and, in the end, a manifest. Without one, it does
not exist."""
