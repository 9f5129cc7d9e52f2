"""A sweep as Ray Tune's documentation has it: a Tuner over a function that trains."""

import sys

from loops.digits import train_loop
from ray import tune
from ray.tune import RunConfig, TuneConfig, Tuner

from ray_gossip import GossipTrainer


def trial(config):
    GossipTrainer(
        train_loop,
        train_loop_config={"lr": config["lr"], "epochs": 20},
        config={"gossip": {"group_size": 2, "steps": config["steps"]}, "swarm": {"cpus_per_peer": 0.25}},
        num_peers=2,
        verbose=False,
    ).fit()


if __name__ == "__main__":
    tuner = Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([{}, *[{"CPU": 0.25}] * 2])),
        param_space={"lr": tune.grid_search([1e-5, 0.1]), "steps": 20},
        tune_config=TuneConfig(metric="accuracy", mode="max"),
        run_config=RunConfig(name="sweep", storage_path=sys.argv[1]),
    )
    best = tuner.fit().get_best_result()
    print("best", best.config["lr"], best.metrics["accuracy"], best.path)
