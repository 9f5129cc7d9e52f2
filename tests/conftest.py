"""What all tests have in common."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("ray_gossip", deadline=None)  # a machine under load is normal
settings.load_profile("ray_gossip")
