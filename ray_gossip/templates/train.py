"""A training loop of your own. Every peer of the swarm runs `train_loop`; meanwhile, ray_gossip averages their models.

ray-gossip train config.yaml                                          # on this machine
ray-gossip train config.yaml swarm.num_peers=8 swarm.gpus_per_peer=1  # a GPU for each peer
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ray_gossip


def load_data():
    """Your data in place of these: handwritten digits, which come with scikit-learn."""
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(digits)
    is_test = torch.arange(len(labels)) % 5 == 0
    return TensorDataset(images[~is_test], labels[~is_test]), TensorDataset(images[is_test], labels[is_test])


def make_model():
    """Your model in place of this one."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


def train_loop(config):
    """What each peer does. `config` is train.loop_args of config.yaml."""
    training, test = load_data()
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9)

    peer = ray_gossip.join(model, optimizer=optimizer)  # from here on, rounds run beside the optimizer's steps
    model.to(peer.device)
    sampler = peer.sampler(training)  # deals every sample of an epoch to one peer
    loader = DataLoader(training, batch_size=config["batch_size"], sampler=sampler)

    for epoch in sampler.epochs(config["epochs"]):
        model.train()
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs.to(peer.device)), labels.to(peer.device))
            loss.backward()
            optimizer.step()
            peer.checkpoint()  # when one is due; after an interruption, the same command with --resume goes on from it
        peer.report({"loss": loss, "accuracy": accuracy(model, test, peer.device), "epoch": epoch})


@torch.no_grad()
def accuracy(model, test, device):
    model.eval()
    inputs, labels = test.tensors
    return (model(inputs.to(device)).argmax(dim=1).cpu() == labels).float().mean()
