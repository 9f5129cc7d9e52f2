"""Fetching what is published, when `data.download` says so."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

from ray_gossip.config import DataConfig
from ray_gossip.data.node_cache import only_one_process
from ray_gossip.errors import DataError


def download(url: str, config: DataConfig, *, root: Path, quiet: bool, fetch: Callable[[], object]) -> None:
    """Let one process of this node fetch and unpack `url` in `root`; the others wait, and find it done.

    Args:
        quiet: hide torchvision's progress bar: a peer's log is no place for it.
        fetch: does it unless it is done already, and compares checksums.

    Raises:
        DataError: no network, a wrong checksum, or another process takes too long.
    """
    with only_one_process(root, Path(url).name, config), contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            fetch()
        except (OSError, RuntimeError) as error:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"data.name={config.name}: cannot download {url} ({cause}); fetch it by other means and unpack it in "
                f"data.root={root}"
            ) from error
