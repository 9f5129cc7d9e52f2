"""Train one swarm as a Ray job: submit it, close the lid.

ray job submit --address http://HEAD:8265 --working-dir . --runtime-env jobs/runtime_env.yaml -- \
    python jobs/train.py configs/cifar10.yaml swarm.num_peers=8 --run-dir /shared/runs/cifar10

Everything after jobs/train.py is what `ray-gossip train` takes. The results are written where the job's driver runs, on
the head node; a job's own folder is deleted after it, so --run-dir must be absolute.
"""

import sys

from ray_gossip.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
