"""QICS by its own interface: cvxpy has none for it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from lipbridge_adapters.sdp.options import Options

if TYPE_CHECKING:
    from lipbridge.lipsdp.blocks import Block, Blocks, Floats


def solve_qics(blocks: Blocks, options: Options, seconds: float) -> tuple[Floats | None, str]:
    """QICS's point, None if it has none, and its status: least variable 0 with ``h - G x`` in the cones."""
    qics: Any = import_module("qics")
    from scipy import sparse

    signed = 1 + blocks.multipliers
    maps = [sparse.eye(signed, blocks.variables, format="csr"), *(_map(sparse, b, blocks) for b in blocks.blocks)]
    h = np.concatenate([np.zeros(signed), *(block.constant.ravel() for block in blocks.blocks)])
    cost = np.zeros((blocks.variables, 1))
    cost[0] = 1.0
    cones = [qics.cones.NonNegOrthant(signed), *(qics.cones.PosSemidefinite(block.size) for block in blocks.blocks)]
    model = qics.Model(c=cost, G=-sparse.vstack(maps, format="csr"), h=h[:, None], cones=cones)
    found = qics.Solver(model, **options.arguments(seconds)).solve()
    point = np.asarray(found["x_opt"], dtype=np.float64).ravel()
    return (point if point.size and bool(np.isfinite(point).all()) else None), str(found["sol_status"])


def _map(sparse: Any, block: Block, blocks: Blocks) -> Any:
    """The block's matrices as columns, both triangles."""
    off = block.rows != block.columns
    rows, columns = np.concatenate([block.rows, block.columns[off]]), np.concatenate([block.columns, block.rows[off]])
    owners = np.concatenate([block.variables, block.variables[off]])
    values = np.concatenate([block.values, block.values[off]])
    shape = (block.size * block.size, blocks.variables)
    return sparse.coo_matrix((values, (rows * block.size + columns, owners)), shape=shape).tocsr()
