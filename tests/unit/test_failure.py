"""What a peer raised, on its way to the driver."""

from __future__ import annotations

import pickle

from ray_gossip.errors import ConfigError, SwarmError
from ray_gossip.swarm.failure import Failure


def caught(error: Exception) -> Failure:
    try:
        raise error
    except Exception as raised:
        return pickle.loads(pickle.dumps(Failure.of(raised)))  # type: ignore[no-any-return]


def test_a_users_mistake_arrives_as_the_same_exception() -> None:
    failure = caught(ConfigError("gossip.alpha=2: raise it"))
    assert type(failure.mistake) is ConfigError
    assert str(failure.mistake) == "gossip.alpha=2: raise it"


def test_anything_else_arrives_as_a_line_and_the_place_at_which_it_was_raised() -> None:
    class Unpicklable(Exception):
        pass

    for error, cause in [
        (SwarmError("no peer\nhears this one"), "SwarmError: no peer\\nhears this one"),
        (Unpicklable("of a user's own"), "Unpicklable: of a user's own"),
        (KeyError(), "KeyError"),
    ]:
        failure = caught(error)
        assert failure.mistake is None
        first, *below = str(failure).splitlines()
        assert first == failure.cause
        place = "" if isinstance(error, SwarmError) else f" ({__file__}, line 13)"
        assert failure.cause == f"{cause}{place}"
        assert "raise error" in "\n".join(below)
