"""A Ray of this machine's own, for one run; and how ray.init is kept from taking over the process."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray import _raylet

from ray_gossip.errors import UserError
from ray_gossip.resources import this_machine

_OBJECT_STORE_BYTES = 200 * 2**20  # reports and one model pass through it, nothing else
_LONGEST_SOCKET = 107  # bytes of its path; Linux


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """Start Ray on this machine, and end it afterwards.

    Raises:
        OSError, RuntimeError, ValueError: Ray cannot be started.
    """
    folder = _short_folder()
    with _own_token():
        try:
            with own_signal_handlers(hold_ctrl_c=True):
                ray.init(
                    address="local",
                    num_cpus=int(this_machine()["CPU"]),
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    logging_level="ERROR",
                    log_to_driver=False,  # what matters is in our records
                    _temp_dir=folder,
                )
        except Exception as error:
            if type(error) is Exception:  # as Ray has it, where a machine is too busy for it to start in time
                raise RuntimeError(str(error)) from error
            raise
        else:
            yield
        finally:
            ray.shutdown()


def _short_folder() -> str | None:
    """Where Ray keeps its sockets; None: where it would."""
    longest = _LONGEST_SOCKET - len(f"/ray/session_2026-11-26_00-59-43_934724_{os.getpid()}/sockets/plasma_store")
    chosen = os.environ.get("RAY_TMPDIR")
    if chosen is not None and len(os.fsencode(chosen)) > longest:
        raise UserError(f"RAY_TMPDIR={chosen} is too long for Ray's sockets: name a folder of at most {longest} bytes")
    is_long = len(os.fsencode(os.environ.get("TMPDIR", ""))) > longest
    return "/tmp/ray" if chosen is None and is_long else None


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """A password for this Ray alone, unless the user has chosen one. Ray itself would write it into the user's home,
    which may not be there, and would ask for it on every cluster that is started on this machine from then on."""
    if any(name.startswith("RAY_AUTH_") for name in os.environ):
        yield
        return
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.update(token)
    _read_token_anew()
    try:
        yield
    finally:
        for name in token:
            os.environ.pop(name, None)
        _read_token_anew()


def _read_token_anew() -> None:
    """Ray reads it once for a process, which may go on to use another cluster."""
    if hasattr(_raylet, "AuthenticationTokenLoader"):  # not in older versions
        _raylet.Config.initialize("")  # type: ignore[attr-defined]
        _raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def own_signal_handlers(*, hold_ctrl_c: bool) -> Iterator[None]:
    """Keep ray.init from taking over.

    Its handlers of SIGTERM print a stack and abort the process 3 s later, whatever it is doing: ours come back. A
    Ctrl-C while it starts processes would leave some of them behind: the first one is held back until it is done.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may touch handlers
        yield
        return
    terminate, interrupt = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    held: list[int] = []

    def hold(number: int, frame: Any) -> None:
        if held and callable(interrupt):
            interrupt(number, frame)
        held.append(number)

    if hold_ctrl_c and callable(interrupt):
        signal.signal(signal.SIGINT, hold)
    try:
        yield
    except SystemExit as ended:  # so Ray answers SIGTERM meanwhile
        held.append(signal.SIGTERM)
        if ended.code != signal.SIGTERM:
            raise
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)
    if held:
        signal.raise_signal(held[0])
