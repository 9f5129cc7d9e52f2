"""Messages between two processes of one user on one machine: pickled values, each with an open file if need be."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import threading
from typing import Any

from ray_gossip.forking.launcher import other_end

_HEAD = struct.Struct("!Q?")  # bytes that follow; whether a file comes along


class Wire:
    """One end of a connected Unix stream socket. Any thread may send, one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._sending = connection, threading.Lock()

    @property
    def other(self) -> tuple[int, int]:
        """Process id and user id of the other side."""
        return other_end(self._socket)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Any, *, file: int | None = None) -> None:
        """Blocks while the other side does not read.

        Args:
            file: a descriptor, of which the other side gets a copy.

        Raises:
            OSError: the other side is gone.
        """
        payload = pickle.dumps(message, protocol=5)
        head = _HEAD.pack(len(payload), file is not None)
        with self._sending:
            if file is None:
                self._socket.sendall(head)
            else:
                socket.send_fds(self._socket, [head], [file])  # so short a message goes at once or not at all
            self._socket.sendall(payload)

    def receive(self) -> tuple[Any, int | None]:
        """The next message, and the descriptor that came along.

        Raises:
            EOFError: the other side is gone.
            TimeoutError: the socket has a time-out.
        """
        try:
            head, files, _, _ = socket.recv_fds(self._socket, _HEAD.size, 1)
            head += self._read(_HEAD.size - len(head)) if head else b""
            if not head:
                raise EOFError
            size, has_file = _HEAD.unpack(head)
            message = pickle.loads(self._read(size))  # noqa: S301 - of a process of the same user, as `own_user` has seen
        except TimeoutError:
            raise
        except OSError:
            raise EOFError from None
        return message, files[0] if has_file else None

    def close(self) -> None:
        """The other side sees the end, whichever process else holds this socket."""
        with contextlib.suppress(OSError):  # it is gone already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, size: int) -> bytes:
        whole = bytearray(size)
        view = memoryview(whole)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]
        return bytes(whole)


def own_user() -> int:
    return os.getuid()
