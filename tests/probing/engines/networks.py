"""Models of a module that workers can import, as those of users are."""

from __future__ import annotations

import os
import signal
import time

import torch
from torch import nn


class Net(nn.Module):
    """Answers by the images of one forward pass together: other batches would show."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(3, 16, 5)
            self.fc = nn.Linear(16, 7)

    def forward(self, x):
        units = self.stem(x).relu().mean((2, 3))
        return self.fc(units - units.mean(0))


class Logged(Net):
    """Writes a line for each forward pass, and may wait for a file before the first."""

    def __init__(self, seed, log, gate=None):
        super().__init__(seed)
        self.log, self.gate = log, gate

    def forward(self, x):
        with self.log.open("a") as file:
            file.write("pass\n")
        while self.gate is not None and not self.gate.exists():
            time.sleep(0.1)
        return super().forward(x)


class DiesOnce(Net):
    """Takes its process along, once, after some forward passes of a worker."""

    def __init__(self, marker, after=8):
        super().__init__(3)
        self.marker, self.after, self.passes = marker, after, 0

    def forward(self, x):
        self.passes += 1
        if self.passes > self.after and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Dies(Net):
    def forward(self, x):
        os.kill(os.getpid(), signal.SIGKILL)


class Refuses(Net):
    """Raises, and tells how often it was asked."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def forward(self, x):
        with self.log.open("a") as file:
            file.write("asked\n")
        raise LookupError("no such\nbucket")


def net():
    return Net()


def visible_gpus():
    raise RuntimeError(f"sees GPUs {os.environ.get('CUDA_VISIBLE_DEVICES')}")
