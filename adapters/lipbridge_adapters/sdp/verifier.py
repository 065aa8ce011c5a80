"""What the verifiers of the cvxpy family declare, and how they read what a user has set."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from lipbridge.problem.options import Option, read_options
from lipbridge.problem.verifier import Verifier
from lipbridge_adapters.sdp.options import Options, require_solver

#: What a user may set.
OPTIONS = (
    Option(
        name="solver",
        type=str,
        default="SCS",
        help="one that cvxpy knows and that takes semidefinite constraints, e.g. SCS, CLARABEL, MOSEK",
        domain="be the name of a cvxpy solver",
    ),
    Option(
        name="eps",
        type=float,
        default=1e-5,
        help="the solver's tolerance",
        domain="be between 0 and 1",
        allows=lambda value: 0 < value < 1,
    ),
    Option(
        name="max_iters",
        type=int,
        default=1_000_000,
        help="the solver's iterations at most",
        domain="be a whole number of at least 1",
        allows=lambda value: value >= 1,
    ),
)


class CvxpyVerifier(Verifier):
    """What every verifier of the cvxpy family declares alike."""

    options = OPTIONS
    requires = ("cvxpy", "scipy")
    install = 'pip install "lipbridge[sdp]"'

    @classmethod
    def solver_options(cls, given: Mapping[str, object]) -> Options:
        """What a user has set, with a solver that is there.

        Raises:
            UnknownName: for an option that is none.
            InvalidArgument: for a value outside its domain.
            LipbridgeError: for a solver that is not installed, with those that are.
        """
        values = read_options(cls.name, cls.options, given)
        options = Options(values["solver"].upper(), values["eps"], values["max_iters"])
        require_solver(import_module("cvxpy"), options.solver)
        return options
