"""Gossip training: Ray actors host hivemind peers; no parameter server, no global barrier."""

__version__ = "0.1.0"
