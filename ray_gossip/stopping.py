"""How a command is stopped from outside: once in order, and not for ever."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any, NoReturn


class OrderlyStop:
    """Within this context, Ctrl-C, SIGTERM (`kill`, `ray job stop`, `timeout`) and SIGHUP (a closed terminal) raise
    KeyboardInterrupt in the main thread. A signal that is ignored, as under nohup, stays so.

    If the stop itself hangs, because Ray's processes got the signal too, the process ends `limit_s` after it.
    """

    limit_s = 14.0
    signal = signal.SIGINT  # the latest that asked for a stop

    def __enter__(self) -> OrderlyStop:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        self._last_resorts: list[threading.Timer] = []
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for timer in self._last_resorts:
            timer.cancel()

    def _stop(self, number: int, frame: Any) -> NoReturn:
        timer = threading.Timer(self.limit_s, os._exit, [128 + number])
        timer.daemon = True
        timer.start()
        self._last_resorts.append(timer)
        self.signal = signal.Signals(number)
        raise KeyboardInterrupt  # no class of our own: Ray's C++ would raise a plain one in its stead
