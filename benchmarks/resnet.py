"""A ResNet-18 with CIFAR stem and random weights: captured, bounded and proved, with seconds and peak memory.

    OMP_NUM_THREADS=2 python benchmarks/resnet.py [--norm 2] [--width 64]

He et al. 2016, with the 3x3 stem that is usual for 32 x 32 images: no max pooling, four stages of two blocks.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from torch import Tensor, nn

import lipbridge


class Block(nn.Module):
    """Two convolutions with BatchNorm, and the shortcut around them."""

    def __init__(self, n: int, m: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, m, 3, stride, 1, bias=False), nn.BatchNorm2d(m)
        self.conv2, self.bn2 = nn.Conv2d(m, m, 3, 1, 1, bias=False), nn.BatchNorm2d(m)
        self.shortcut = nn.Sequential()
        if stride != 1 or n != m:
            self.shortcut = nn.Sequential(nn.Conv2d(n, m, 1, stride, bias=False), nn.BatchNorm2d(m))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18(width: int = 64, classes: int = 10) -> nn.Sequential:
    """The network, with statistics of BatchNorm as after some training."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    n = width
    for stage in range(4):
        m = width * 2**stage
        layers += [Block(n, m, 1 if stage == 0 else 2), Block(m, m, 1)]
        n = m
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, classes))
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
                layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(std=0.1)
    return network.eval()


def main() -> None:
    """Print one line a step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--norm", default="2")
    parser.add_argument("--width", type=int, default=64)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = resnet18(arguments.width)
    start = time.perf_counter()
    graph = lipbridge.capture(network, (3, 32, 32))
    captured = time.perf_counter()
    bound = lipbridge.trivial_bound(graph, arguments.norm)
    proved = time.perf_counter()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        difference = float((graph(x.double()) - network.double()(x.double())).abs().max())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"threads {torch.get_num_threads()}; nodes {len(graph.nodes)}; graph - module {difference:.1e}")
    print(f"capture {captured - start:.1f} s, bound {proved - captured:.1f} s, peak memory {memory:.2f} GB")
    print(bound)


if __name__ == "__main__":
    main()
