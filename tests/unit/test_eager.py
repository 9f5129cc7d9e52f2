"""torch's optimizers without torch's compiler do what they do with it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

STEPS = """
import json, sys
import torch
from ray_gossip.training.eager import keep_compiler_out
if sys.argv[1] == "without":
    keep_compiler_out()
torch.manual_seed(1)
ends = {}
for name in sys.argv[2:]:
    model = torch.nn.Linear(5, 3)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(3):
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
        schedule.step()
    assert torch.is_grad_enabled()
    optimizer.load_state_dict(optimizer.state_dict())
    ends[name] = model.weight.flatten().tolist()
loaded = "torch._dynamo" in sys.modules
compiled = torch.compile(model, backend="eager")
loss = compiled(torch.randn(4, 5)).square().sum()
loss.backward()
optimizer.step()
print(json.dumps({"ends": ends, "loaded": loaded, "after": model.weight.flatten().tolist()}))
"""


@pytest.fixture(scope="module")
def names() -> list[str]:
    unsuited = {"Optimizer", "LBFGS", "SparseAdam", "Muon"}
    return [name for name in dir(torch.optim) if name[0].isupper() and name not in unsuited]


def test_every_optimizer_does_the_same_steps_and_no_compiler_is_loaded(names: list[str]) -> None:
    """Nor is a model that is compiled afterwards trained any other way."""
    told = {}
    for kind in ("with", "without"):
        done = subprocess.run([sys.executable, "-c", STEPS, kind, *names], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told[kind] = json.loads(done.stdout)
    assert told["with"].pop("loaded") is True
    assert told["without"].pop("loaded") is False
    assert told["with"] == told["without"]
