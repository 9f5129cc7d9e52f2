"""A script as Ray Train's documentation has it: one function, and TorchTrainer around it."""

import os
import sys

import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def train_loop(config):
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9)
    model = prepare_model(model)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    for epoch in range(config["epochs"]):
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
        ray.train.report({"loss": loss.item(), "epoch": epoch})
    torch.save(model.state_dict(), f"{config['models']}/{os.getpid()}.pt")


if __name__ == "__main__":
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"lr": 0.05, "epochs": int(sys.argv[4]), "models": sys.argv[3]},
        scaling_config=ScalingConfig(num_workers=int(sys.argv[1]), resources_per_worker={"CPU": 0.25}),
        run_config=RunConfig(name="digits", storage_path=sys.argv[2]),
    )
    trainer.fit()
