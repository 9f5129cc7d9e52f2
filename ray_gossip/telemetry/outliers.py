"""Peers that `gossip.robust` holds back round after round. Pure."""

from __future__ import annotations

from ray_gossip.causes import FAR_OUT
from ray_gossip.records import RoundReport
from ray_gossip.telemetry.tally import peers_named

_LATEST, _MOST = 10, 5  # rounds of a peer; in so many of them it was far from its groupmates


class Outliers:
    """Give it every round. One that is reported by several peers counts once."""

    def __init__(self) -> None:
        self._of_peer: dict[int, dict[int, bool]] = {}  # by round: whether it was far from the others

    def see(self, report: RoundReport) -> str:
        """What a person should know now; empty: nothing."""
        if report.outcome == "averaged":
            for index in report.group:
                rounds = self._of_peer.setdefault(index, {})
                rounds[report.round] = rounds.get(report.round, False) or f"peer-{index:02d} {FAR_OUT}" in report.cause
                if len(rounds) > _LATEST:
                    del rounds[min(rounds)]
        far = [index for index, rounds in self._of_peer.items() if sum(rounds.values()) >= _MOST]
        if not far:
            return ""
        return (
            f"{peers_named(far)} sent what is far from what the others sent, and counted for less: look at the GPU, "
            "the packages and the data there; where data differ that much on purpose, set gossip.robust=none"
        )
