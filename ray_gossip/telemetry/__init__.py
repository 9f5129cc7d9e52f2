"""What a run leaves behind, and the picture of it while it runs. The driver writes, peers only report.

    <run_dir>/
      config.yaml       the resolved config
      events.jsonl      every record, one JSON object a line, in the order of arrival
      peer-00/ ...      TensorBoard, a run per peer: `curves` lists the tags
      swarm/            TensorBoard, the swarm: means and extremes under the peers' tags, consensus distance
      summary.json      the end of the story

`observer` owns the current picture: `state` folds records into it, `watch` says when something is wrong with it, by
what `tally` counts and `advice` knows, `recovery` how the run got over faults on purpose. `curves` and `summary` read
it; only `log` touches the disk.
"""

from ray_gossip.telemetry.log import RUN_FILES, RunLog, dump_json
from ray_gossip.telemetry.observer import Observer
from ray_gossip.telemetry.replay import Replay, config_of, recorded, replay
from ray_gossip.telemetry.state import News, PeerState, Status, SwarmRound, SwarmState, Trouble
from ray_gossip.telemetry.summary import Summary, means, summarise
from ray_gossip.telemetry.tally import peers_named
from ray_gossip.telemetry.untrained import clear_untrained, is_untrained, set_earlier_attempt_aside

__all__ = [
    "RUN_FILES",
    "News",
    "Observer",
    "PeerState",
    "Replay",
    "RunLog",
    "Status",
    "Summary",
    "SwarmRound",
    "SwarmState",
    "Trouble",
    "clear_untrained",
    "config_of",
    "dump_json",
    "is_untrained",
    "means",
    "peers_named",
    "recorded",
    "replay",
    "set_earlier_attempt_aside",
    "summarise",
]
