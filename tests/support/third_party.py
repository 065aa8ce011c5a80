"""A package of somebody else's verifiers, installed in a folder: well-behaved, lying, crashing, hanging, greedy."""

from __future__ import annotations

from pathlib import Path

SOURCE = '''
import math, os, sys, time
from dataclasses import replace

import torch
from lipbridge.problem.question import Ball, Question
from lipbridge.problem.bound import Bound, Witness
from lipbridge.constants.trivial import trivial_bound
from lipbridge.verifiers import Option, Refusal, Task, Verifier
from lipbridge.vocabulary import Quantity, Side


class Base(Verifier):
    """Each has a method bound_of(problem, budget), which its task calls."""

    summary, norms, proved = "for tests", "2", True
    takes, otherwise = Quantity.LIPSCHITZ, "no deviation"

    @property
    def name(self):
        return type(self).__name__.lower()

    def prepare(self, problem):
        return Work(self, problem) if problem.quantity is self.takes else Refusal(self.name, self.otherwise)

    def value(self, problem, factor=1.0):
        value = factor * trivial_bound(problem.graph, problem.input_norm).value
        return Bound(
            value=value, side=Side.UPPER, proved=True, question=problem.question, method=self.name
        )


class Work(Task):
    def __init__(self, verifier, problem):
        self.verifier, self.problem = verifier, problem

    def bound(self, budget):
        return self.verifier.bound_of(self.problem, budget)

    def certify(self, inputs, labels, radius, budget):
        return self.verifier.certified(self.problem.graph, inputs, labels)


class Honest(Base):
    options = (Option(name="factor", type=float, default=2.0, help="of the trivial bound"),)

    def bound_of(self, problem, budget):
        print("chatter on stdout")
        os.write(1, b"chatter from C\\n")
        return self.value(problem, float(budget.options.get("factor", 2.0)))


class Liar(Base):
    def bound_of(self, problem, budget):
        return self.value(problem, 1e-3)


class Boaster(Base):
    """Claims a lower bound that nothing backs: it must not make others look unsound."""

    def bound_of(self, problem, budget):
        witness = Witness(torch.ones(1, 3), torch.ones(1, 3))  # of another network
        return Bound(
            value=1e9, side=Side.LOWER, proved=True, question=problem.question, method="boast", witness=witness
        )


class Elsewhere(Base):
    """Bounds another region than it was asked for."""

    def bound_of(self, problem, budget):
        ball = Ball(torch.zeros(1, *problem.graph.input_shape), 1e-3, 2)
        return replace(self.value(problem), value=0.1, question=Question.on(ball, 2))


class Crash(Base):
    def bound_of(self, problem, budget):
        sys.stderr.write("solver core: the last words\\n")
        sys.stderr.flush()
        os.abort()


class Leave(Base):
    def bound_of(self, problem, budget):
        os._exit(7)


class Raise(Base):
    def bound_of(self, problem, budget):
        raise ZeroDivisionError("first line\\nsecond line")


class Early(Base):
    """Fails before it says whether it can."""

    def prepare(self, problem):
        raise ZeroDivisionError("too early")


class Neither(Base):
    def prepare(self, problem):
        return None


class Hang(Base):
    def bound_of(self, problem, budget):
        os.system("sleep 300")


class Greedy(Base):
    def bound_of(self, problem, budget):
        kept = []
        while True:
            kept.append(b"x" * 2**26)
            time.sleep(0.01)


class Nothing(Base):
    def bound_of(self, problem, budget):
        return None


class Nan(Base):
    def bound_of(self, problem, budget):
        return self.value(problem, math.nan)


class Local(Base):
    """Bounds only the deviation in balls, and certifies predictions."""

    takes, otherwise, certifies = Quantity.DEVIATION, "deviation only", True

    def bound_of(self, problem, budget):
        return self.value(problem)

    def certified(self, graph, inputs, labels):
        return graph(inputs).argmax(1) == labels


class Slow(Base):
    """A bound at once, a certification never."""

    certifies = True

    def bound_of(self, problem, budget):
        return self.value(problem)

    def certified(self, graph, inputs, labels):
        time.sleep(300)


class Absent(Base):
    requires, install = ("a_package_that_nobody_has",), "pip install a-package-that-nobody-has"

    def bound_of(self, problem, budget):
        raise AssertionError("never called")
'''

NAMES = (
    *("honest", "liar", "boaster", "crash", "leave", "raise", "hang", "greedy", "nothing", "nan"),
    *("early", "neither", "elsewhere", "local", "slow", "absent"),
)


def install(folder: Path) -> Path:
    """Write the package and its metadata, as an installer would; returns the folder for ``sys.path``."""
    (folder / "their_verifiers.py").write_text(SOURCE)
    metadata = folder / "their_verifiers-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-verifiers\nVersion: 1.0\n")
    points = "\n".join(f"{name} = their_verifiers:{name.title()}" for name in NAMES)
    (metadata / "entry_points.txt").write_text(f"[lipbridge.verifiers]\n{points}\nbroken = their_verifiers:Gone\n")
    return folder
