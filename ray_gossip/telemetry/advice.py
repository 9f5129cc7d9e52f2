"""What is likely behind a round that did not average, by the words of its cause, and the key to turn. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ray_gossip import causes
from ray_gossip.config import GossipConfig
from ray_gossip.records import RoundReport

_LONGEST_CAUSE = 100  # characters of a cause that are quoted


class _Rule(NamedTuple):
    words: tuple[str, ...]  # any of them, in the cause
    advice: str
    is_lasting: bool = False  # it does not pass by itself


# The first that fits counts.
_RULES = (
    _Rule((causes.NOT_FINITE,), "the training has diverged: lower optimizer.lr", True),
    _Rule((causes.OUT_OF_RANGE,), "set gossip.compression=none, or lower optimizer.lr", True),
    _Rule((causes.OTHER_MODEL,), "give all peers the same model.name or model.factory", True),
    _Rule(
        (causes.UNREACHABLE,),
        "if it has not died, open all ports between the machines; a peer behind a router needs --announce_maddr "
        "(announce_maddrs in join)",
        True,
    ),
    _Rule(
        (causes.TOOK_LONGER, causes.INCOMPLETE),
        "the network is slow, or a groupmate stalls: set gossip.compression=fp16, {interval} or gossip.allreduce_s",
    ),
    _Rule(
        (causes.BUSY, causes.SILENT, causes.NO_ANSWER),
        "machines are overloaded, or peers stand still: raise swarm.cpus_per_peer, or {interval}",
    ),
    _Rule((causes.TOO_FEW,), "raise gossip.group_size or swarm.num_peers, or set gossip.robust=none", True),
    _Rule(
        (causes.BAD_PART, causes.ANSWERS_NONSENSE),
        "give all peers the same release of ray_gossip, and the same gossip.*",
        True,
    ),
    _Rule((causes.NOBODY_FOUND,), "set gossip.schedule=grid, or raise gossip.matchmaking_s"),
    _Rule((causes.TOO_LATE,), "{late}"),
)
_OTHERWISE = _Rule((), "peers are out of step, or the network is slow: {interval}")


def advice_on(reports: Sequence[RoundReport], gossip: GossipConfig) -> str:
    """The commonest cause of these rounds, as the latest of them says it, and what to do about it."""
    rule, cause = _commonest([report.cause for report in reports])
    quoted = cause if len(cause) <= _LONGEST_CAUSE else f"{cause[:_LONGEST_CAUSE]}..."
    advice = rule.advice
    if cause.startswith("no group of") and gossip.min_group_size > 2 and not rule.is_lasting:
        advice = f"lower gossip.min_group_size={gossip.min_group_size}"
    wait_s = gossip.matchmaking_s
    late = f"unset gossip.matchmaking_s={wait_s:g}" if wait_s else "peers are overloaded: {interval}"
    return f"{quoted or 'no cause is known'}; " + advice.replace("{late}", late).replace("{interval}", longer(gossip))


def advice_on_end(final_causes: Sequence[str]) -> str:
    """What to do about final rounds that did not average: more time is of use only against what passes by itself."""
    rule, _ = _commonest(final_causes)
    return rule.advice if rule.is_lasting else "raise swarm.final_s"


def is_same_cause(cause: str, reports: Sequence[RoundReport]) -> bool:
    """Whether this cause is known, and the commonest of these rounds."""
    rule, _ = _commonest([report.cause for report in reports])
    return rule is not _OTHERWISE and rule == _rule(cause)


def is_lasting(cause: str) -> bool:
    """Whether this does not pass by itself, so that it is no bad luck when it comes again and again."""
    return _rule(cause).is_lasting


def longer(gossip: GossipConfig) -> str:
    """The key that makes rounds rarer."""
    return "raise gossip.steps" if gossip.seconds is None else "raise gossip.seconds"


def forces(gossip: GossipConfig) -> str:
    """The keys whose values may drive the peers apart, the likeliest first."""
    keys = ["gossip.outer_lr or gossip.outer_momentum"] if gossip.outer != "none" else []
    keys += ["optimizer.lr", "gossip.steps" if gossip.seconds is None else "gossip.seconds"]
    return ", ".join(keys) + (f", or raise gossip.alpha={gossip.alpha:g}" if gossip.alpha < 1 else "")


def _commonest(causes: Sequence[str]) -> tuple[_Rule, str]:
    """The rule that fits most of these, and the latest cause that it fits."""
    rules = [_rule(cause) for cause in causes]
    (rule, _), *_ = Counter(rules).most_common(1)
    return rule, next(cause for cause, each in zip(reversed(causes), reversed(rules), strict=True) if each == rule)


def _rule(cause: str) -> _Rule:
    return next((rule for rule in _RULES if any(words in cause for words in rule.words)), _OTHERWISE)
