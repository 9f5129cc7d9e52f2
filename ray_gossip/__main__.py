"""`python -m ray_gossip`, where the command `ray-gossip` is not on the path."""

import sys

from ray_gossip.cli import main

if __name__ == "__main__":
    sys.exit(main())
