"""No product of weights in a proof forgets underflow: each function that multiplies names what covers it, or why not.

A float64 product of two numbers that are not zero may be zero. So a function of a proof that multiplies, divides,
squares or takes an exponential names what covers that (a floor, a helper of :mod:`lipbridge.rounding.outward`, the
errors of :mod:`lipbridge.rounding.uncertain`, a scalar rounded up), or stands in the list below with the reason why it
need not. Products of whole numbers (sizes, counts) do not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lipbridge

ROOT = Path(lipbridge.__file__).parent

#: Folders whose every file is a proof, and the other files with one.
FOLDERS = ("constants", "lowering", "propagation", "rescaling", "rigor", "robustness", "rounding", "lipsdp")
FILES = (
    "activations/slopes.py",
    "frontend/diagonal.py",
    "frontend/normalisation.py",
    "graph/geometry.py",
    "graph/windows.py",
)
#: What only looks for multipliers: what it finds is proved elsewhere.
SEARCHES = ("lipsdp/elimination.py", "lipsdp/blocks.py", "lipsdp/solve/")
PROOFS = tuple(
    name
    for name in sorted([*FILES, *(str(p.relative_to(ROOT)) for f in FOLDERS for p in (ROOT / f).rglob("*.py"))])
    if not name.startswith(SEARCHES) and not name.endswith("__init__.py")
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
    "frontend/diagonal.py:reciprocal": "tracked: what is lost is in the error",
    "frontend/diagonal.py:scale_of_statistics": "tracked: what is lost is in the error",
    "frontend/diagonal.py:shares": "tracked: what is lost is in the error",
    "rounding/outward.py:total": "sums do not underflow: what is subnormal is exact",
    "rigor/running_error.py:plus": "sums do not underflow: what is subnormal is exact",
    "rigor/running_error.py:size_of": "sums do not underflow: what is subnormal is exact",
    "frontend/normalisation.py:batch_norm": "a shift, which no constant reads, and the recipe of training",
    "rescaling/channel_chain.py:Layer.weight": "read by estimates, and by runs that demand a size (SMALLEST_SCALED)",
    "rescaling/channels.py:Objective.log_norm": ESTIMATE,
    "rescaling/channels.py:as_factors": "any positive factors do",
    "constants/node_constants.py:_root_up": "whole numbers",
    "lowering/dense.py:_Writer.linear": "counts of entries",
    "lowering/selections.py:_Writer.maximum": "counts of entries",
    "lowering/twin.py:_sides": "zeros and ones times a number",
    "propagation/adjoint.py:_(Gather)#2": "sums of copies, relative to what is a FLOOR at least",
    "propagation/products.py:product": CALLER + "a FLOOR for each term",
    "propagation/products.py:_product": CALLER + "a FLOOR for each term",
    "propagation/rules.py:spread_up": CALLER + "its forms' ends have a FLOOR for each term",
    "propagation/rules.py:times": CALLER + "each sum of errors ends in a FLOOR",
    "propagation/softmax.py:_others": "exp(x - max x) beside a sum of at least one, whose error is counted",
    "propagation/softmax.py:_softplus": "exp(-|q|) that underflows is nothing beside q or one, and ULPS are added",
    "propagation/linear_maps.py:_(Dense)": CALLER + "a FLOOR for each term",
    "propagation/linear_maps.py:transposed": CALLER + "a FLOOR for each term",
    "propagation/space.py:normalised": "a distance, which is a FLOOR at least",
    "propagation/bounds.py:_box": CALLER + "its forms' ends have a FLOOR for each term",
    "propagation/one_sided.py:Choice.__init__": "a slope to try: offsets are enclosed for whatever slope",
    "propagation/one_sided.py:Choice._tried": "a slope to try: offsets are enclosed for whatever slope",
    "propagation/one_sided.py:Choice.at": "a slope to try: offsets are enclosed for whatever slope",
    "propagation/one_sided.py:optimised_upper": "slopes to try, and a rate",
    "propagation/one_sided.py:_along": CALLER + "each form's bound has a FLOOR for each term",
    "propagation/jacobian/derivative.py:times": CALLER + "each form's bound has a FLOOR for each term",
    "propagation/jacobian/cotangents.py:Cotangents._relax": "charges, which are a FLOOR at least",
    "propagation/jacobian/cotangents.py:Cotangents.narrowed": "counts of numbers",
    "propagation/jacobian/cotangents.py:_sum": "relative to sums, which end in a FLOOR",
    "propagation/jacobian/diagonal.py:Diagonal.ends": "a sign",
    "propagation/jacobian/diagonal.py:Diagonal.adjoint": "a few products, which `around` widens by a FLOOR",
    "propagation/jacobian/diagonal.py:_Relaxed.image": CALLER + "`relaxed` has a FLOOR for each coefficient",
    "propagation/jacobian/normalising.py:Uncertain.adjoint": CALLER + "`off` has a FLOOR for each entry",
    "propagation/jacobian/normalising.py:SoftmaxDerivative.center": CALLER + "`off` has a FLOOR for each entry",
    "propagation/jacobian/normalising.py:SoftmaxDerivative.image": CALLER
    + "`relaxed` has a FLOOR for each coefficient",
    "propagation/jacobian/normalising.py:SoftmaxDerivative.radius": CALLER + "`off` has a FLOOR for each entry",
    "propagation/jacobian/normalising.py:SoftmaxDerivative.size": CALLER + "`off` has a FLOOR for each entry",
    "propagation/jacobian/normalising.py:NormalizeDerivative._middle": CALLER + "`off` has a FLOOR for each entry",
    "propagation/jacobian/normalising.py:NormalizeDerivative.size": CALLER + "`off` has a FLOOR for each entry",
    "propagation/jacobian/norms.py:steepest": "relative to slopes; norm_up adds a FLOOR",
    "propagation/jacobian/norms.py:Norms._rows": "norms, which are a FLOOR at least, times constants that are one too",
    "propagation/jacobian/norms.py:Norms.matrix": "norms, which are a FLOOR at least, times what is near one",
    "propagation/jacobian/norms.py:middle_and_radius": "norms, which are a FLOOR at least; beside a norm of one",
    "propagation/jacobian/regions.py:Parts._seen": ESTIMATE,
    "propagation/jacobian/regions.py:Parts._wide": "a place to split",
    "propagation/jacobian/regions.py:Parts._influential": "a score",
    "propagation/jacobian/regions.py:place": "a place to split",
    "propagation/jacobian/selection.py:Maximum.adjoint": "relative to sums; `around` adds a FLOOR",
    "rigor/matrix.py:largest_eigenvalue_up": "a shift to try, which smallest_eigenvalue_down proves",
    "rigor/matrix.py:times_power_of_two": CALLER + "every caller says what entries lose",
    "rigor/convolution.py:_is_small": "counts of operations",
    "rigor/convolution.py:_twiddles": CALLER + "_torus_up (UNDERFLOW)",
    "rigor/gram.py:bounds_of_iterates": "bounds are at least UNDERFLOW, and scales near their root",
    "rigor/gram.py:largest_eigenvalue_of_batch_up": "a choice of what to sharpen",
    "rigor/gram.py:scaled_square": "a power of two near the size, which is at least the root of UNDERFLOW",
    "robustness/radii.py:margins_down": "what rounding takes from sums, which are exact where that underflows",
    "robustness/radii.py:radii_of": "rounded down: a margin that underflows is zero, a quotient goes a step to zero",
    "rigor/tangent_error.py:_(GroupSort)": "twice an error, compared",
    "rigor/tangent_error.py:_(MaxPool)": "twice an error, compared",
    "rigor/running_error.py:_add_error": "sums do not underflow: what is subnormal is exact",
    "rigor/running_error.py:_component_error": "sums do not underflow; the node adds a FLOOR",
    "rigor/running_error.py:least_deviation": "the root of an epsilon above zero, at least 2^-537",
    "rigor/tangent_error.py:_moves": "asks only whether the slope of the function itself is zero",
    "rigor/running_error.py:normalized": "the variance's error is at least FLOOR, and the deviation at least 2^-537",
    "rigor/tangent_error.py:_side_is_certain": "_argument_error is added, which holds what underflows",
    "graph/windows.py:window_places": "whole numbers",
    "activations/slopes.py:component_bend": "signs alone",
    "rounding/uncertain.py:_product_up": "_underflow is added",
    "lipsdp/by_channel/constant.py:_after": ESTIMATE,
    "lipsdp/by_channel/runs.py:_fits": "counts of operations",
    "lipsdp/by_channel/frequencies.py:_ordered": "whole numbers",
    "lipsdp/by_channel/proof.py:_prove_stage": "multipliers are what is computed, exactly",
    "lipsdp/by_channel/frequencies.py:_own_error": "numbers, of 2^-52",
    "lipsdp/by_channel/constant.py:_stage": ESTIMATE,
    "lipsdp/by_channel/frequencies.py:_whole": "whole numbers",
    "lipsdp/by_channel/constant.py:log_constant": ESTIMATE,
    "lipsdp/by_channel/runs.py:predicted_memory": "bytes",
    "lipsdp/by_channel/constant.py:starting_logs": ESTIMATE,
    "lipsdp/unit_slopes.py:UnitRule.separate": ESTIMATE,
    "lipsdp/unit_slopes.py:UnitRule.weight": CALLER + "Spread counts underflow of scaled weights",
    "lipsdp/unit_slopes.py:_Rows.everywhere": "a choice between two rules that both hold",
    "lipsdp/unit_slopes.py:_around": "c is any number; r is taken from it and goes a step up",
    "lipsdp/unit_slopes.py:_blocks": CALLER + "factors over a power of two, whose loss Spread counts",
    "lipsdp/unit_slopes.py:_coarse": "a test of exactness",
    "lipsdp/linf.py:_diagonals": ESTIMATE,
    "lipsdp/linf.py:_feasible": ESTIMATE,
    "lipsdp/linf.py:_output_storage": "H is what is computed, exactly",
    "lipsdp/linf.py:_scale": ESTIMATE,
    "lipsdp/linf.py:_scaled_total": ESTIMATE,
    "lipsdp/linf.py:closed_form": ESTIMATE,
    "lipsdp/linf.py:mixed": ESTIMATE,
    "lipsdp/proof.py:at_least_diagonal": "multipliers are what is computed, exactly",
    "lipsdp/proof.py:gram_of": "Spread bounds its rounding and its underflow",
    "lipsdp/proof.py:prove_stage": "multipliers are what is computed, exactly",
    "lipsdp/balls.py:_improve": "shares of time",
    "lipsdp/by_channel/multipliers.py:bound_by_channels": "shares of time",
    "lipsdp/by_channel/multipliers.py:_Whole.parted": "whole numbers",
    "lowering/relu_blocks.py:Blocks.after": "fractions",
    "lowering/relu_blocks.py:_without_slopes": "fractions",
    "lowering/rounded_weights.py:merged_before": "an estimate of the rounding, which the report shows",
    "rigor/accuracy.py:_relative": "the running error adds a floor to every accuracy",
    "rigor/accuracy.py:_bounded": "the running error adds a floor to every accuracy",
    "rigor/accuracy.py:_argument": "the running error adds a floor to every accuracy",
    "rigor/accuracy.py:_elu_error": "the running error adds a floor to every accuracy",
    "rigor/roots.py:_arctan_of_inverse": "whole numbers",
    "rigor/roots.py:_cosine_and_sine": "whole numbers",
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
        f"{unknown}: name what covers an underflow (see lipbridge.rounding.outward), or list them with the reason."
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
