"""One program for each method that `compare.py` compares, written as its documentation has it, around one task."""
