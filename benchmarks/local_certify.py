"""Certified accuracy of a plain MNIST network: by the global constant, by local constants of pairs, and by CROWN.

    python -m benchmarks.local_certify MODEL [--points 1000] [--radii 0.1,0.2,0.3,0.4,0.5] [--norm 2]
        [--verifiers trivial,jacobian:constants,jacobian,auto_lirpa] [--seconds 600]

MODEL is a run's folder or file, e.g. of ``lipbridge train mnist --penalty 0 --activation relu --bias``;
``$LIPBRIDGE_DATA`` names MNIST. ``trivial`` certifies by the global constants of pairs, ``jacobian:constants`` by
the constants of all pairs on each ball, ``jacobian`` also by linear bounds of the margins there, all proved;
``auto_lirpa`` by CROWN, in floating point. The first test images, in one process and on one thread.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from lipbridge import Ball, Budget, Problem, Quantity, Question, Refusal, get_verifier
from lipbridge.data import load_dataset
from lipbridge.files.models import open_models
from lipbridge.machine import machine_facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--radii", default="0.1,0.2,0.3,0.4,0.5")
    parser.add_argument("--norm", default="2")
    parser.add_argument("--verifiers", default="trivial,jacobian:constants,jacobian,auto_lirpa")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each verifier and radius")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_dataset("mnist")
    graph = open_models([arguments.model])[0].graph
    x = data.test_inputs[: arguments.points].double().reshape(-1, *graph.input_shape)
    labels = data.test_labels[: arguments.points]
    right = float((graph(x).argmax(1) == labels).double().mean())
    print(json.dumps(machine_facts()))
    print(f"accuracy on {len(labels)} points {100 * right:.2f} %")
    for radius in map(float, arguments.radii.split(",")):
        for told in arguments.verifiers.split(","):
            name, _, extra = told.partition(":")
            options = {} if extra != "constants" else {"margins": False}
            verifier = get_verifier(name)
            task = verifier.prepare(Problem(graph, Question.everywhere(arguments.norm)))
            if isinstance(task, Refusal):  # it knows balls alone
                ball = Ball(x, radius, arguments.norm)
                task = verifier.prepare(Problem(graph, Question.on(ball, quantity=Quantity.DEVIATION)))
            start = time.perf_counter()
            budget = Budget(seconds=arguments.seconds, options=options)
            share = float(task.certify(x, labels, radius, budget).double().mean())
            seconds = time.perf_counter() - start
            print(f"l{arguments.norm} {radius:g} {told:20s} {100 * share:6.2f} %  {seconds:8.2f} s", flush=True)


if __name__ == "__main__":
    main()
