"""Whether a cluster may grow. Its nodes of today say little then: many clusters wait with a head of 0 CPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import ray
from ray import _raylet
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.experimental.internal_kv import _internal_kv_get

_STATUS = "__autoscaling_status"  # ray_constants.DEBUG_AUTOSCALING_STATUS, the first autoscaler's word
_NO_TYPE = "node_"  # what the types of nodes are called by an autoscaler that only looks on
_ANSWER_S = 10


def may_grow() -> bool:
    """Whether an autoscaler can bring nodes. Ray does not tell which kinds, and how many."""
    return any(name and not name.startswith(_NO_TYPE) for name in _node_types())


def _node_types() -> Iterator[str]:
    """The types of the nodes that an autoscaler, of either version, sees."""
    status = json.loads(_internal_kv_get(_STATUS) or "{}")
    yield from ((status.get("autoscaler_report") or {}).get("node_type_mapping") or {}).values()
    reply = GetClusterStatusReply()
    client = _raylet.GcsClient(address=ray.get_runtime_context().gcs_address)  # type: ignore[attr-defined]
    reply.ParseFromString(client.get_cluster_status(timeout_s=_ANSWER_S))
    if reply.HasField("autoscaling_state"):
        yield from (node.ray_node_type_name for node in reply.cluster_resource_state.node_states)
