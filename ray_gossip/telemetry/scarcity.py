"""What a peer's machine is about to run out of. Pure."""

from __future__ import annotations

from ray_gossip.records import Usage

KINDS = ("memory", "disk", "shared memory", "open files")
_MEMORY = 0.06  # of all; at 0.05 Ray ends processes
_DISK, _SHARED = 100_000_000, 32_000_000  # bytes
_FILES = 0.8  # of those that it may have open


def scarce(usage: Usage) -> dict[str, str]:
    """By kind: what is to be said of it; mostly nothing."""
    peer, found = f"the machine of peer-{usage.peer_index:02d}", dict[str, str]()
    if usage.memory_free_bytes < _MEMORY * usage.memory_bytes:
        found["memory"] = (
            f"{peer} has {_size(usage.memory_free_bytes)} of {_size(usage.memory_bytes)} of memory left, and Ray ends "
            f"processes when it is full; the peer takes {_size(usage.trainer_bytes + usage.helper_bytes)} for training "
            f"and {_size(usage.network_bytes)} for averaging: lower swarm.num_peers, or the workers of a DataLoader"
        )
    if usage.disk_free_bytes is not None and usage.disk_free_bytes < _DISK:
        found["disk"] = (
            f"{peer} has {_size(usage.disk_free_bytes)} left on the disk where its checkpoints go: make room, or set "
            "checkpoint.place; training goes on, and the last whole checkpoint stays"
        )
    if usage.helper_bytes and usage.shared_free_bytes is not None and usage.shared_free_bytes < _SHARED:
        found["shared memory"] = (
            f"{peer} has {_size(usage.shared_free_bytes)} left in /dev/shm, through which the workers of a DataLoader "
            "send batches: give its container more (docker run --shm-size), or set num_workers=0"
        )
    if usage.open_files > _FILES * usage.most_open_files:
        found["open files"] = (
            f"peer-{usage.peer_index:02d} has {usage.open_files} of {usage.most_open_files} files open that it may "
            "have: raise the limit of its node (ulimit -n)"
        )
    return found


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
