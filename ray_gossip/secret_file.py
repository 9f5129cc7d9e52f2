"""Where the secret of a run is kept, and from where it is read. It appears nowhere else: see `gossip.admission`."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ray_gossip.config import SwarmConfig
from ray_gossip.errors import UserError
from ray_gossip.gossip.admission import Secret

OPTION, TEXT, FILE = "--secret_file", "RAY_GOSSIP_SECRET", "RAY_GOSSIP_SECRET_FILE"
_LONGEST = 1000


def given(
    path: Path | str | None, *, option: str = OPTION, environment: Mapping[str, str] = os.environ
) -> Secret | None:
    """The secret that a user has given, in a file or in the environment; None: none.

    Raises:
        UserError: what was given is none, or cannot be read.
    """
    source = option
    if path is None and (text := environment.get(TEXT)):
        return _parsed(text, TEXT)
    if path is None and environment.get(FILE):
        path, source = environment[FILE], FILE
    if path is None:
        return None
    try:
        with Path(path).open(encoding="ascii", errors="replace") as file:
            return _parsed(file.read(_LONGEST), f"{source} {path}")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {source} {path}: {getattr(error, 'strerror', None) or error}") from None


def given_for(swarm: SwarmConfig, path: Path | str | None, *, option: str = OPTION) -> Secret | None:
    """The same for a swarm that may be open: that has none, whatever the environment says.

    Raises:
        UserError: as `given`; or it is open, and a file is given all the same.
    """
    if swarm.open and path is not None:
        raise UserError(f"swarm.open=true goes without a secret: leave out swarm.open, or {option}")
    return None if swarm.open else given(path, option=option)


def keep(secret: Secret, *, run_id: str, run_dir: Path | None = None) -> Path:
    """Write it where nobody else can read it: into the run's folder if only this user can look into that, which may be
    shared or uploaded, else into this user's folder for such things. Returns the file.

    Raises:
        UserError: there is no such place.
    """
    folder = run_dir if run_dir is not None and _is_private(run_dir) else _own_folder()
    path = folder / (f"{run_id}.secret" if folder != run_dir else "secret")
    try:
        path.unlink(missing_ok=True)  # of the same run before it was interrupted
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(file, "w") as written:
            written.write(f"{secret.text()}\n")
    except OSError as error:
        raise UserError(f"cannot keep the secret of this run in {path}: {error.strerror}; or set swarm.open") from None
    return path.absolute()


def forget(path: Path) -> None:
    """The run is over."""
    with contextlib.suppress(OSError):
        path.unlink()


def _parsed(text: str, source: str) -> Secret:
    try:
        return Secret.parse(text)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _own_folder() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    for folder in (Path(home) / "ray_gossip", Path(tempfile.gettempdir()) / f"ray_gossip-{os.geteuid()}"):
        with contextlib.suppress(OSError, RuntimeError):  # no such place, or no home
            folder = folder.expanduser()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_private(folder):
                return folder
    raise UserError(f"there is no private folder for the secret of this run: set XDG_STATE_HOME, or {FILE}")


def _is_private(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
