"""lip4conv on one kernel, in a process of its own: ``python convolutions_peer.py FOLDER KERNEL.npz``. Prints JSON."""

from __future__ import annotations

import json
import sys

import numpy as np
import torch


def main() -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, sys.argv[1])
    # The peer calls .cuda() on what it makes: here the CPU stands in.
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    import bounds  # pyright: ignore[reportMissingImports]

    file = np.load(sys.argv[2])
    weight, size = torch.from_numpy(file["weight"]), int(file["size"])
    methods = {
        "gram": lambda: bounds.compute_delattre2023(weight.clone(), n=size, n_iter=6, return_time=False),
        "zero": lambda: bounds.compute_delattre2024(weight.clone(), n_iter=4, return_time=False),
        "toeplitz": lambda: bounds.compute_araujo2021(
            weight.clone(), padding=weight.shape[-1] // 2, device="cpu", return_time=False
        ),
    }
    found: dict[str, float] = {}
    for name, method in methods.items():
        try:
            found[name] = float(method())
        except Exception as error:  # one of the peer's methods failing leaves the others
            print(f"{name}: {error}", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
