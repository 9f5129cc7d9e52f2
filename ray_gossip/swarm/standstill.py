"""Make processes stand still for a share of some seconds, as a program: SECONDS SHARE PID...

Part of `strikes`. It imports nothing else of ray_gossip, so that it starts at once.
"""

import os
import signal
import sys
import time

_TURN_S = 0.15


def _send(pids: list[int], what: signal.Signals) -> None:
    for pid in list(pids):
        try:
            os.kill(pid, what)
        except ProcessLookupError:
            pids.remove(pid)


def main(seconds: float, share: float, pids: list[int]) -> None:
    until = time.monotonic() + seconds
    try:
        while pids and (left_s := until - time.monotonic()) > 0:
            _send(pids, signal.SIGSTOP)
            time.sleep(left_s if share >= 1 else min(left_s, _TURN_S * share))
            if share < 1:
                _send(pids, signal.SIGCONT)
                time.sleep(_TURN_S * (1 - share))
    finally:
        _send(pids, signal.SIGCONT)


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), [int(pid) for pid in sys.argv[3:]])
