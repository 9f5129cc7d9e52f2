"""Sweep as a Ray job.

ray job submit --address http://HEAD:8265 --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/tune.py configs/tune_cifar10.yaml --run-dir /shared/sweeps/cifar10

Everything after jobs/tune.py is what `ray-gossip tune` takes; --resume goes on after a stop. With several nodes,
--run-dir lies on a file system that all of them share; that is checked before the first trial.
"""

import sys

from ray_gossip.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
