"""The error tree.

    RayGossipError
    ├── UserError          the user can mend it: one line, exit code 2, nothing was trained
    │   ├── ConfigError        a key of the config
    │   ├── DataError          a data set is missing or damaged
    │   └── ResourceError      the cluster cannot hold what was asked for
    └── SwarmError         the run could not go on: every peer died, none came up in time

A round that fails is not an error but a value: `records.RoundReport.outcome`.
"""


class RayGossipError(Exception):
    """Everything that this package raises on purpose."""


class UserError(RayGossipError):
    """The user can mend it. The message is one line that names the key and the fix."""


class ConfigError(UserError):
    """A config key is unknown, has the wrong type, or is out of range."""


class DataError(UserError):
    """A data set is missing or damaged."""


class ResourceError(UserError):
    """The Ray cluster has too few CPUs, GPUs or nodes for this swarm."""


class SwarmError(RayGossipError):
    """The swarm as a whole could not go on."""
