"""The error tree.

    RayGossipError
    ├── UserError          the user can mend it: one line, exit code 2, nothing was trained
    │   ├── ConfigError        a key of the config
    │   ├── DataError          a data set is missing or damaged
    │   └── ResourceError      the cluster cannot hold what was asked for
    └── SwarmError         the run could not go on: every peer died, none came up in time
        └── DivergedError      a peer's parameters are no numbers any more, and no successor would fare better

A round that fails is not an error but a value: `records.RoundReport.outcome`.
"""


class RayGossipError(Exception):
    """Everything that this package raises on purpose."""


class UserError(RayGossipError):
    """The user can mend it. The message is one line that names the key and the fix, whatever was typed."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigError(UserError):
    """A config key is unknown, has the wrong type, or is out of range."""


class DataError(UserError):
    """A data set is missing or damaged."""


class ResourceError(UserError):
    """The Ray cluster has too few CPUs, GPUs or nodes for this swarm."""


class SwarmError(RayGossipError):
    """The swarm as a whole could not go on."""


class DivergedError(SwarmError):
    """The training of this peer has diverged."""


_LONGEST = 2000  # characters of a message: what was typed may have any length


def one_line(text: str) -> str:
    """Line breaks and other characters that steer a terminal are written out; of a long text the middle is left out."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
