"""A script as Lightning's documentation has it: an autoencoder as a LightningModule, and a Trainer."""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class LitAutoEncoder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64))

    def training_step(self, batch, batch_idx):
        (images,) = batch
        loss = nn.functional.mse_loss(self.decoder(self.encoder(images)), images)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        (images,) = batch
        self.log("val_loss", nn.functional.mse_loss(self.decoder(self.encoder(images)), images))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main():
    L.seed_everything(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32).flatten(1) / 16
    train_set, val_set = random_split(TensorDataset(images), [1500, 297])
    trainer = L.Trainer(max_epochs=5, accumulate_grad_batches=2, enable_progress_bar=False)
    trainer.fit(LitAutoEncoder(), DataLoader(train_set, batch_size=8, shuffle=True), DataLoader(val_set, batch_size=99))


if __name__ == "__main__":
    main()
