"""Reproduces the figure of LipSDP's README (36.482) from its file of weights, with a proved bound, also after export.

    python benchmarks/lipsdp_readme.py PATH/random_weights.mat [EPS]

The last rows are of the file that :func:`lipbridge_adapters.matlab.lipsdp_mat.export_mat` writes from it. The file is
`LipSDP/examples/saved_weights/random_weights.mat` of the LipSDP repository: ReLU, widths 2-10-30-20-2.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from lipbridge.constants.trivial import trivial_bound
from lipbridge.lipsdp.multipliers import closed_form_bound
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Question
from lipbridge.verifiers import Budget, get_verifier
from lipbridge_adapters.matlab.lipsdp_mat import export_mat, read_mat

PUBLISHED = 36.482


def main() -> None:
    torch.set_num_threads(1)
    graph = read_mat(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        report = export_mat(graph, Path(folder) / "again.mat")
        again = read_mat(report.path)
    options = {"eps": float(sys.argv[2]) if len(sys.argv) > 2 else 1e-7, "gap": 1e-7}
    bounds = {
        "trivial": trivial_bound(graph),
        "closed form": closed_form_bound(graph),
        "lipsdp": get_verifier("lipsdp").prepare(Problem(graph, Question.everywhere(2))).bound(Budget(options=options)),
        "lipsdp-fast": get_verifier("lipsdp-fast")
        .prepare(Problem(graph, Question.everywhere(2)))
        .bound(Budget(options=options)),
        "lipsdp, again": get_verifier("lipsdp")
        .prepare(Problem(again, Question.everywhere(2)))
        .bound(Budget(options=options)),
        "lipsdp-fast, again": get_verifier("lipsdp-fast")
        .prepare(Problem(again, Question.everywhere(2)))
        .bound(Budget(options=options)),
    }
    print(f"{'published':18s} {PUBLISHED:10.3f}  (LipSDP README, MOSEK's objective)")
    for name, bound in bounds.items():
        print(f"{name:18s} {bound.value:10.5f}  {bound.seconds:6.2f} s, {'proved' if bound.proved else 'NOT proved'}")
    print(f"after export: slopes in [{report.alpha:g}, {report.beta:g}]; {report.command}")


if __name__ == "__main__":
    main()
