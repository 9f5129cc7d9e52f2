"""The words in which a round says why it did not average, or who was missing.

`hive` says them; `telemetry` looks for them, to tell what is likely wrong. A member's name stands before those in lower
case: `peer-02 could not be reached`.
"""

from __future__ import annotations

from collections.abc import Sequence

# There was nobody to meet.
SCHEDULED_ALONE = "scheduled alone"  # an odd number in pairs, say
NO_OTHERS = "no other member in the swarm"
CUT_OFF = "sees no other member, where several were lately that have not left"
EXPIRED = "could not renew its declaration in the DHT, so that the others do not see it"
NOBODY_FOUND = "hivemind's matchmaking found nobody"

# This peer could not try.
RESTARTS = "its network side is started again"

# A groupmate did not come to the meeting.
HAS_LEFT = "has left"
OTHER_VIEW = "sees other members this round"
IS_DONE = "has done its local steps"
UNREACHABLE = "could not be reached"
SILENT = "does not answer"
BUSY = "is busy"
TOO_LATE = "did not come within"
ANSWERS_NONSENSE = "gives an answer that nobody understands"
OTHER_MODEL = "averages tensors of another size: not the same model"

# The all-reduce was not complete.
LOST = "was lost in the all-reduce"
GAVE_UP = "could not average and said so"
HAD_ENDED = "had ended this round already"
NO_ANSWER = "did not answer in time"
INCOMPLETE = "of the mean arrived"
BAD_PART = "sent a part that nobody can average"
TOOK_LONGER = "took longer than"

DIVERGED = "the training has diverged"  # how a notice begins of a peer that goes on with another's model

# A groupmate was there, and what it sent counted for less, or would have counted alone.
FAR_OUT = "is far from the others, and held back by gossip.robust"
TOO_FEW = "too few for gossip.robust"

# What would be averaged is no number, or none that could travel.
NOT_FINITE = "not finite"
OUT_OF_RANGE = "its parameters are beyond the range of gossip.compression,"

OTHER = "for another cause"


_KNOWN = tuple(words for name, words in sorted(globals().items()) if name.isupper() and name != "DIVERGED")


def known_in(cause: str) -> list[str]:
    """Those of these words that a round's cause says, which may name several members."""
    return [words for words in _KNOWN if words in cause] or [OTHER]


def lacking(names: Sequence[str]) -> str:
    """Of a final average, when peers have vanished without a goodbye: they may be dead, or about to be back."""
    return f"the final average lacks {', '.join(names)}, lately there and gone without a goodbye"
