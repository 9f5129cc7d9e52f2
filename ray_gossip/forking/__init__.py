"""Processes that have imported what others need, once, and fork them: the nursery of sidecars, the server of workers.

`server.py` is what both are; `launcher.py` starts them, and is what Ray starts for a worker; `workers.py` forks those.
"""
