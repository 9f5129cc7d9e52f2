"""The network side of a peer, a program of its own: DHT, libp2p daemon and averager live there, hivemind with them.

The training process holds a `Sidecar`, and imports no hivemind. Either may die without the other losing anything.
"""
