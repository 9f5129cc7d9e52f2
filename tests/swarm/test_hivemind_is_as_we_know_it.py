"""What ray_gossip reaches into, in the installed hivemind: when one of these fails, read ray_gossip/hive again.

Where a test of real rounds would only hang or fail strangely, these say which name has changed.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import inspect
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from types import SimpleNamespace
from typing import Any

import hivemind
import pytest
import torch
from hivemind.averaging import DecentralizedAverager
from hivemind.averaging.allreduce import AllReduceRunner
from hivemind.averaging.control import StepControl
from hivemind.averaging.group_info import GroupInfo
from hivemind.averaging.matchmaking import Matchmaking
from hivemind.averaging.partition import AllreduceException, TensorPartContainer, TensorPartReducer
from hivemind.compression import NoCompression
from hivemind.p2p import P2P, P2PDaemonError, P2PHandlerError, PeerID, ServicerBase
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure
from hivemind.proto import averaging_pb2
from hivemind.utils import MPFuture

from ray_gossip.hive.allreduce import StrictAllReduce, Traffic
from ray_gossip.hive.averager import GossipAverager
from ray_gossip.hive.process import AlwaysForked
from ray_gossip.hive.shipped import _ObservedAverager

RELAY = "/libp2p/circuit/relay/0.2.0/hop"


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def source(function: Callable[..., Any]) -> str:
    return " ".join(inspect.getsource(function).split())


def test_the_version_is_one_that_was_read() -> None:
    major, minor, *_ = importlib.metadata.version("hivemind").split(".")
    assert (major, minor) == ("1", "1")


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        (AllReduceRunner, "_ban_sender", ["self", "peer_id"]),
        (AllReduceRunner, "_communicate_with_peer", ["self", "peer_id"]),
        (AllReduceRunner, "_generate_input_for_peer", ["self", "peer_index"]),
        (AllReduceRunner, "_get_peer_stub", ["self", "peer"]),
        (AllReduceRunner, "_accumulate_parts_streaming", ["self", "stream", "sender_index"]),
        (AllReduceRunner, "rpc_aggregate_part", ["self", "stream", "context"]),
        (AllReduceRunner, "finalize", ["self", "cancel", "exception"]),
        (TensorPartContainer, "register_failed_reducer", ["self", "peer_index"]),
        (DecentralizedAverager, "_register_allreduce_group", ["self", "group_info"]),
        (DecentralizedAverager, "rpc_aggregate_part", ["self", "stream", "context"]),
        (DecentralizedAverager, "_run_allreduce_inplace_", ["self", "tensors", "group_info", "group_id", "kwargs"]),
        (DecentralizedAverager, "_step", ["self", "step", "future_for_init"]),
        (DecentralizedAverager, "get_current_state", ["self"]),
        (hivemind.Optimizer, "_make_state_averager", ["self", "kwargs"]),
        (hivemind.Optimizer, "_update_global_epoch", ["self", "grad_scaler"]),
        (Matchmaking, "look_for_group", ["self", "step"]),
        (ServicerBase, "get_stub", ["p2p", "peer", "namespace"]),
        (StepControl, "attach", ["self", "trigger", "cancel"]),
        (MPFuture, "reset_backend", []),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_we_override_or_call_takes_what_we_know(owner: type, name: str, expected: list[str]) -> None:
    assert parameters(getattr(owner, name)) == expected


def test_a_group_is_known_by_its_id_members_and_gathered_data() -> None:
    info = GroupInfo(b"group", (PeerID(b"A"), PeerID(b"B")), (b"", b""))
    assert (info.group_id, info.peer_ids, info.gathered) == (b"group", (PeerID(b"A"), PeerID(b"B")), (b"", b""))


def test_messages_have_the_fields_that_we_fill() -> None:
    assert {"code", "group_id", "tensor_part", "weight"} <= set(averaging_pb2.AveragingData.DESCRIPTOR.fields_by_name)
    assert {"schema_hash", "group_key", "gather"} <= set(averaging_pb2.JoinRequest.DESCRIPTOR.fields_by_name)
    assert {"code", "group_id", "gathered"} <= set(averaging_pb2.MessageFromLeader.DESCRIPTOR.fields_by_name)
    codes = averaging_pb2.MessageCode.keys()
    assert {"AVERAGED_PART", "INTERNAL_ERROR", "BEGIN_ALLREDUCE", "NO_CODE"} <= set(codes)


class LonelyAllReduce(StrictAllReduce):
    """Of this peer and one that never answers; nothing is sent."""

    def __init__(self, own: PeerID, other: PeerID) -> None:
        p2p = SimpleNamespace(peer_id=own)
        super().__init__(
            traffic=Traffic(),
            codecs=[NoCompression()],
            p2p=p2p,
            servicer_type=AllReduceRunner,
            prefix=None,
            group_id=b"group",
            tensors=[torch.zeros(10)],
            ordered_peer_ids=(own, other),
            peer_fractions=(0.5, 0.5),
            part_size_bytes=20,
            out=torch.zeros(10),
        )


def test_an_all_reduce_keeps_its_books_where_we_read_them() -> None:
    async def test() -> None:
        own, other = PeerID(b"own"), PeerID(b"other")
        runner = LonelyAllReduce(own, other)
        container, reducer = runner.tensor_part_container, runner.tensor_part_reducer
        assert (container.total_size, container.failed_size) == (10, 0)
        assert container.num_parts_by_peer == (1, 1)
        assert container._outputs_registered_by_peer == [0, 0]
        assert (reducer.num_parts, reducer.current_part_index, reducer.num_parts_received) == (1, 0, [0, 0])
        assert not reducer.current_part_future.done()
        assert not reducer.finished.is_set()
        assert runner.sender_peer_ids == [own, other]
        assert not runner.all_senders_started.is_set()
        assert runner.banned_senders == set()
        assert not runner._future.done()

        await runner._ban_sender(other)
        assert isinstance(reducer.current_part_future.exception(), AllreduceException)
        assert runner.failures == {other.to_base58(): "was lost in the all-reduce"}
        container.register_failed_reducer(1)
        assert (runner.received_share, container.failed_size) == (0.5, 5)
        runner.finalize()
        assert runner._future.done()

    asyncio.run(test())


def test_an_all_reduce_that_is_cancelled_names_those_that_it_waited_for() -> None:
    async def test() -> None:
        own, other = PeerID(b"own"), PeerID(b"other")
        runner = LonelyAllReduce(own, other)
        mine = asyncio.create_task(runner.tensor_part_reducer.accumulate_part(0, 0, torch.zeros(5)))
        await asyncio.sleep(0.01)
        runner.finalize(exception=asyncio.CancelledError())
        assert runner.failures == {other.to_base58(): "did not answer in time"}
        with pytest.raises(AllreduceException):
            await mine

    asyncio.run(test())


def test_a_sender_whose_stream_ends_does_not_cancel_what_the_others_wait_for() -> None:
    async def test(*, is_shielded: bool) -> torch.Tensor:
        reducer: Any = LonelyAllReduce(PeerID(b"own"), PeerID(b"other")).tensor_part_reducer
        accumulate = reducer.accumulate_part
        if not is_shielded:
            accumulate = partial(TensorPartReducer.accumulate_part, reducer)
        ends = asyncio.create_task(accumulate(0, 0, torch.zeros(5)))
        await asyncio.sleep(0.01)
        ends.cancel()
        mean: torch.Tensor = await accumulate(1, 0, torch.ones(5))
        return mean

    assert asyncio.run(test(is_shielded=True)).tolist() == [0.5] * 5
    with pytest.raises(asyncio.InvalidStateError):
        asyncio.run(test(is_shielded=False))


def test_the_averager_answers_parts_of_groups_that_are_registered_and_waits_for_those_about_to_be() -> None:
    text = source(DecentralizedAverager.rpc_aggregate_part)
    assert "self._running_groups" in text
    assert "await self._pending_groups_registered.wait()" in text
    assert "future = self._running_groups.get(request.group_id)" in text
    assert "group = await future" in text
    assert "self._running_groups[group_info.group_id] = asyncio.Future()" in source(
        DecentralizedAverager._register_allreduce_group
    )


def test_the_averager_calls_the_method_that_is_named_on_its_pipe() -> None:
    text = source(DecentralizedAverager._run_internal)
    assert "method, args, kwargs = self._inner_pipe.recv()" in text
    assert "asyncio.create_task(getattr(self, method)(*args, **kwargs))" in text
    assert "self._outer_pipe.send(" in source(DecentralizedAverager.step)
    assert "self._p2p = await self.dht.replicate_p2p()" in text


def test_the_averager_has_the_members_that_we_use() -> None:
    text = source(DecentralizedAverager.__init__)
    for name in ("_averaged_tensors", "schema_hash", "total_size", "prefix", "dht"):
        assert f"self.{name} = " in text or f"self.{name}, " in text, name


def test_averagers_are_processes_whose_start_we_may_choose() -> None:
    assert issubclass(DecentralizedAverager, BaseProcess)
    assert _ObservedAverager._Popen is AlwaysForked._Popen
    assert issubclass(hivemind.DHT, BaseProcess)


def test_rpc_handlers_are_collected_per_class() -> None:
    GossipAverager._collect_rpc_handlers()
    handlers: Any = GossipAverager._rpc_handlers
    names = {handler.method_name for handler in handlers}
    assert {"rpc_meet", "rpc_coming", "rpc_aggregate_part", "rpc_join_group", "rpc_download_state"} <= names
    assert "rpc_meet" not in {handler.method_name for handler in DecentralizedAverager._rpc_handlers or []}


def test_errors_of_the_network_are_those_that_we_catch() -> None:
    assert issubclass(P2PHandlerError, Exception)
    assert issubclass(P2PDaemonError, Exception)
    assert not issubclass(P2PDaemonError, OSError)


def test_a_dht_takes_the_arguments_of_start_dht_and_shuts_down_when_asked() -> None:
    names = parameters(hivemind.DHT.__init__)
    assert {"initial_peers", "start", "kwargs"} <= set(names)
    asked = {"host_maddrs", "startup_timeout", "use_auto_relay", "use_relay", "nat_port_map", "auto_nat"}
    assert asked <= set(parameters(P2P.create))
    assert callable(hivemind.DHT.shutdown)
    assert callable(hivemind.DHT.get_visible_maddrs)


# what only hivemind's authors can mend
@pytest.mark.filterwarnings("ignore:path is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning")
@pytest.mark.parametrize("is_relay", [True, False])
def test_a_daemon_relays_for_strangers_only_where_it_is_told_to(is_relay: bool) -> None:
    async def test() -> None:
        daemons = [await P2P.create(use_relay=each) for each in (is_relay, False)]
        try:
            peer, stranger = daemons
            addresses = [address.decapsulate(f"/p2p/{peer.peer_id}") for address in await peer.get_visible_maddrs()]
            await stranger._client.connect(peer.peer_id, addresses)
            opening = stranger._client.stream_open(peer.peer_id, [RELAY])
            if is_relay:
                stream, _, writer = await opening
                assert stream.proto == RELAY
                writer.close()
            else:
                with pytest.raises(ControlFailure, match="protocols not supported"):
                    await opening
        finally:
            for daemon in daemons:
                await daemon.shutdown()

    asyncio.run(test())
    gc.collect()  # while what hivemind has left open is ignored
