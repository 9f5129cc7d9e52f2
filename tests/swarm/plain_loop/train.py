"""A small network learns handwritten digits. Plain PyTorch: python train.py NUM_STEPS"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

num_steps = int(sys.argv[1])
device = "cuda" if torch.cuda.is_available() else "cpu"

pixels, digits = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
labels = torch.tensor(digits)
is_test = torch.arange(len(labels)) % 5 == 0

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(256, 10),
)

model.to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
train_images, train_labels = images[~is_test].to(device), labels[~is_test].to(device)
for _ in range(num_steps):
    batch = torch.randint(len(train_labels), (32,), device=device)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(train_images[batch]), train_labels[batch])
    loss.backward()
    optimizer.step()

model.eval()
right = model(images[is_test].to(device)).argmax(dim=1) == labels[is_test].to(device)
print(f"test accuracy {right.float().mean():.3f}")
torch.save(model.state_dict(), "model.pt")
