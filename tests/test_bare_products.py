"""No product of weights in a proof forgets underflow: each function that multiplies names what covers it, or why not.

A float64 product of two numbers that are not zero may be zero. So a function of a proof that multiplies, divides,
squares or takes an exponential names what covers that (a floor, a helper of :mod:`lipbridge.outward`, the errors of
:mod:`lipbridge.uncertain`, a scalar rounded up), or stands in the list below with the reason why it need not. Products
of whole numbers (sizes, counts) do not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lipbridge

ROOT = Path(lipbridge.__file__).parent

PROOFS = (
    "capture_diagonal.py",
    "capture_normalisation.py",
    "chain_rounding.py",
    "channels.py",
    "layer_constants.py",
    "lowering_dense.py",
    "outward.py",
    "propagation.py",
    "propagation_adjoint.py",
    "propagation_rules.py",
    "propagation_softmax.py",
    "propagation_space.py",
    "rigor.py",
    "rigor_convolution.py",
    "rigor_gram.py",
    "robustness.py",
    "rounding.py",
    "search/running_error.py",
    "slopes.py",
    "uncertain.py",
    "verifiers/channel_runs.py",
    "verifiers/lmi_apart.py",
    "verifiers/lmi_linf.py",
    "verifiers/lmi_proof.py",
    "verifiers/lmi_system.py",
)

#: What covers an underflow: floors that are added, and functions whose results are rounded outward, or carry an error.
COVERS = frozenset(
    [
        "TINY",
        "FLOOR",
        "LOST",
        "UNDERFLOW",
        "SMALLEST",
        "SLACK",
        "away",
        "product",
        "quotient",
        "enlarged",
        "scaled_up",
        "add_up",
        "mul_up",
        "up",
        "down",
        "Uncertain",
        "composed",
        "image",
        "plus",
        "outward",
        "Fraction",
    ]
)
OPERATORS = (ast.Mult, ast.Div, ast.MatMult, ast.Pow)
CALLS = frozenset(
    [
        "square",
        "matmul",
        "mm",
        "bmm",
        "einsum",
        "mul",
        "div",
        "pow",
        "dot",
        "addmm",
        "addmm_",
        "exp",
        "exp2",
        "expm1",
        "reciprocal",
        "rsqrt",
        "convolve",
        "times",
    ]
)
#: What gives whole numbers: calls, attributes, and names by custom.
COUNTING = frozenset(["len", "numel", "prod", "isqrt", "int"])
COUNTS = frozenset(["shape", "ndim", "groups", "width", "kernel", "stride", "dilation", "window", "tap"])
COUNT_NAMES = frozenset(
    [
        "n",
        "m",
        "k",
        "K",
        "J",
        "count",
        "taps",
        "terms",
        "step",
        "done",
        "frequencies",
        "operations",
        "index",
        "group",
        "squarings",
    ]
)

ESTIMATE = "no proof: what it finds is a claim that is proved elsewhere"
CALLER = "entries near one, or its caller adds what underflows: "
ALLOWED = {
    "capture_diagonal.py:reciprocal": "tracked: what is lost is in the error",
    "capture_diagonal.py:scale_of_statistics": "tracked: what is lost is in the error",
    "capture_diagonal.py:shares": "tracked: what is lost is in the error",
    "outward.py:total": "sums do not underflow: what is subnormal is exact",
    "search/running_error.py:_plus": "sums do not underflow: what is subnormal is exact",
    "search/running_error.py:_size": "sums do not underflow: what is subnormal is exact",
    "capture_normalisation.py:_affine": "a shift, which no constant reads, and the differentiable recipe of training",
    "channels.py:Layer.weight": "read by estimates, and by runs that demand a size (SMALLEST_SCALED)",
    "channels.py:Objective.log_norm": ESTIMATE,
    "channels.py:as_factors": "any positive factors do",
    "layer_constants.py:_root_up": "whole numbers",
    "lowering_dense.py:_Writer.linear": "counts of entries",
    "propagation_adjoint.py:_(Gather)#2": "sums of copies, relative to what is a FLOOR at least",
    "propagation_rules.py:times": CALLER + "each sum of errors ends in a FLOOR",
    "propagation_softmax.py:_others": "exp(x - max x) beside a sum of at least one, whose error is counted",
    "propagation_softmax.py:_softplus": "exp(-|q|) that underflows is nothing beside q or one, and ULPS are added",
    "propagation_space.py:_transposed": CALLER + "pull adds a FLOOR for each term",
    "rigor.py:largest_eigenvalue_up": "a shift to try, which smallest_eigenvalue_down proves",
    "rigor.py:times_power_of_two": CALLER + "every caller says what entries lose",
    "rigor_convolution.py:_is_small": "counts of operations",
    "rigor_convolution.py:_twiddles": CALLER + "_torus_up (UNDERFLOW)",
    "rigor_gram.py:bounds_of_iterates": "bounds are at least UNDERFLOW, and scales near their root",
    "rigor_gram.py:largest_eigenvalue_of_batch_up": "a choice of what to sharpen",
    "rigor_gram.py:scaled_square": "a power of two near the size, which is at least the root of UNDERFLOW",
    "robustness.py:radii_of": "rounded down: a margin that underflows is zero, a quotient goes a step to zero",
    "search/running_error.py:_(GroupSort)#2": "twice an error, compared",
    "search/running_error.py:_(MaxPool)#2": "twice an error, compared",
    "search/running_error.py:_add_error": "sums do not underflow: what is subnormal is exact",
    "search/running_error.py:_component_error": "sums do not underflow; the node adds a FLOOR",
    "search/running_error.py:_least_deviation": "the root of an epsilon above zero, at least 2^-537",
    "search/running_error.py:_moves": "asks only whether the slope of the function itself is zero",
    "search/running_error.py:_normalized": "the variance's error is at least FLOOR, and the deviation at least 2^-537",
    "search/running_error.py:_side_is_certain": "_argument_error is added, which holds what underflows",
    "search/running_error.py:window_places": "whole numbers",
    "slopes.py:component_bend": "signs alone",
    "uncertain.py:_product_up": "_underflow is added",
    "verifiers/channel_runs.py:_after": ESTIMATE,
    "verifiers/channel_runs.py:_fits": "counts of operations",
    "verifiers/channel_runs.py:_ordered": "whole numbers",
    "verifiers/channel_runs.py:_prove_stage": "multipliers are what is computed, exactly",
    "verifiers/channel_runs.py:_own_error": "numbers, of 2^-52",
    "verifiers/channel_runs.py:_stage": ESTIMATE,
    "verifiers/channel_runs.py:_whole": "whole numbers",
    "verifiers/channel_runs.py:log_constant": ESTIMATE,
    "verifiers/channel_runs.py:predicted_memory": "bytes",
    "verifiers/channel_runs.py:starting_logs": ESTIMATE,
    "verifiers/lmi_apart.py:UnitRule.apart": ESTIMATE,
    "verifiers/lmi_apart.py:UnitRule.weight": CALLER + "Spread counts underflow of scaled weights",
    "verifiers/lmi_apart.py:_Rows.everywhere": "a choice between two rules that both hold",
    "verifiers/lmi_apart.py:_around": "c is any number; r is taken from it and goes a step up",
    "verifiers/lmi_apart.py:_blocks": CALLER + "factors over a power of two, whose loss Spread counts",
    "verifiers/lmi_apart.py:_coarse": "a test of exactness",
    "verifiers/lmi_linf.py:_diagonals": ESTIMATE,
    "verifiers/lmi_linf.py:_feasible": ESTIMATE,
    "verifiers/lmi_linf.py:_output_storage": "H is what is computed, exactly",
    "verifiers/lmi_linf.py:_scale": ESTIMATE,
    "verifiers/lmi_linf.py:_scaled_total": ESTIMATE,
    "verifiers/lmi_linf.py:closed_form": ESTIMATE,
    "verifiers/lmi_linf.py:mixed": ESTIMATE,
    "verifiers/lmi_proof.py:at_least_diagonal": "multipliers are what is computed, exactly",
    "verifiers/lmi_proof.py:gram_of": "Spread bounds its rounding and its underflow",
    "verifiers/lmi_proof.py:prove_stage": "multipliers are what is computed, exactly",
}


def functions(text: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods of a file by name, those inside of others with them; rules of one name are numbered."""
    seen: dict[str, int] = {}
    for outer in ast.parse(text).body:
        inside = outer.body if isinstance(outer, ast.ClassDef) else [outer]
        prefix = f"{outer.name}." if isinstance(outer, ast.ClassDef) else ""
        for node in inside:
            if isinstance(node, ast.FunctionDef):
                rule = node.args.args[0].annotation if node.name == "_" else None
                name = prefix + (f"_({ast.unparse(rule)})" if rule is not None else node.name)
                seen[name] = seen.get(name, 0) + 1
                yield name if seen[name] == 1 else f"{name}#{seen[name]}", node


def names(tree: ast.AST) -> set[str]:
    return {
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(tree) if isinstance(n, ast.Name | ast.Attribute)
    }


def whole(operand: ast.expr) -> bool:
    """Whether an operand is a count, or a list that is repeated."""
    if isinstance(operand, ast.Constant):
        return isinstance(operand.value, int)
    if isinstance(operand, ast.Name):
        return operand.id in COUNT_NAMES
    if isinstance(operand, ast.BinOp):
        return whole(operand.left) and whole(operand.right)
    if isinstance(operand, ast.Subscript):
        return operand_name(operand.value) in COUNTS
    if isinstance(operand, ast.Call):
        return operand_name(operand.func) in COUNTING
    return isinstance(operand, ast.List | ast.Tuple) or operand_name(operand) in COUNTS


def operand_name(operand: ast.expr) -> str:
    return operand.attr if isinstance(operand, ast.Attribute) else getattr(operand, "id", "")


def multiplies(function: ast.FunctionDef) -> bool:
    """Whether a function has a product, quotient or power of other numbers than counts."""
    for node in ast.walk(function):
        if isinstance(node, ast.BinOp) and isinstance(node.op, OPERATORS):
            if not (whole(node.left) or whole(node.right)) and not _constants(node):
                return True
        elif (isinstance(node, ast.AugAssign) and isinstance(node.op, OPERATORS) and not whole(node.value)) or (
            isinstance(node, ast.Call) and operand_name(node.func) in CALLS
        ):
            return True
    return False


def _constants(node: ast.BinOp) -> bool:
    return not names(node)


def bare(text: str) -> list[str]:
    """Functions that multiply without a word of what is lost."""
    return [name for name, node in functions(text) if multiplies(node) and not names(node) & COVERS]


@pytest.mark.parametrize("file", PROOFS)
def test_every_product_of_a_proof_says_what_underflow_takes(file: str) -> None:
    found = [f"{file}:{name}" for name in bare((ROOT / file).read_text(encoding="utf-8"))]
    unknown = [name for name in found if name not in ALLOWED]
    assert not unknown, (
        f"{unknown}: name what covers an underflow (see lipbridge.outward), or list them with the reason."
    )


def test_the_list_has_no_entry_too_many() -> None:
    found = {f"{file}:{name}" for file in PROOFS for name in bare((ROOT / file).read_text(encoding="utf-8"))}
    assert sorted(set(ALLOWED) - found) == []
    assert all(len(reason) > 4 for reason in ALLOWED.values())


def test_a_bare_product_is_found() -> None:
    assert bare("def f(W, s):\n    return W * s\n") == ["f"]
    assert bare("def f(W, s):\n    return product(W, s)\n") == []
    assert bare("def f(x):\n    return 2 * len(x)\n") == []
    assert bare("def f(W):\n    W /= W.max()\n    return W\n") == ["f"]
    assert bare("class A:\n    def f(self, W):\n        return W.square()\n") == ["A.f"]
