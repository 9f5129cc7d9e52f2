"""Ray workers that are forked from a process of their node which has imported torch once.

`launcher.py` is what Ray starts in place of Python; `server.py` is the process that forks.
"""
