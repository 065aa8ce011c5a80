"""What a bound of a chain lacks where the chain's weights are rounded ones of the network.

Let the network be ``V_L g_(L-1)(... g_1(V_1 x))`` with ``V_l = W_l + E_l`` and ``|E_l| <= e_l`` entry by entry; the
chain has the same activations and the weights W_l. For two inputs each activation turns the increment z of its argument
into ``D z`` for a matrix D of one column a unit, whose norm is at most the activation's constant c. So the network's
increment is ``V_L D_(L-1) ... D_1 V_1`` times that of the input, and

    V_L D_(L-1) ... D_1 V_1 = W_L D_(L-1) ... D_1 W_1 + sum over l of V_L D_(L-1) ... D_l E_l D_(l-1) ... D_1 W_1.

A bound that is proved from what is known of activations, unit by unit, bounds the first product for *all* matrices that
obey it, so also for these D; with the norms of the others it bounds the sum. (Where z is zero for a unit, its column
may be any increment that the unit makes elsewhere.) Biases play no part, unless in what is known on a region: that has
to hold for the network's own arguments. Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from lipbridge.lowering.chain import Chain
from lipbridge.rigor.matrix import proved_operator_norm
from lipbridge.rounding.scalars import add_up, mul_up
from lipbridge.vocabulary import Norm


def rounding_term(chain: Chain, norm: Norm, dead: Sequence[bool] | None = None) -> float:
    """What to add to a bound of the chain's l_p constant, on any region, for one of the network's; zero if exact.

    Args:
        chain: of :func:`lipbridge.lowering.chain.as_chain`.
        norm: p, of inputs and outputs.
        dead: for each activation whether all its units are constant on the region.

    Raises:
        NumericalFailure: if a norm overflows or weights hold NaN.

    Law: for the weights of the network and any matrices D of norm at most that of the activations, the norm of the
    network's product is at most that of the chain's plus this.
    """
    if not any(error is not None for error in chain.errors) or (dead is not None and any(dead)):
        return 0.0
    lost = [0.0 if error is None else proved_operator_norm(error, norm) for error in chain.errors]
    norms = [
        add_up(proved_operator_norm(layer.weight, norm), own) for layer, own in zip(chain.layers, lost, strict=True)
    ]
    constants = [activation.lipschitz[norm] for activation in chain.activations]
    return add_up(
        *(mul_up(own, *norms[:index], *norms[index + 1 :], *constants) for index, own in enumerate(lost) if own)
    )


__all__ = ["rounding_term"]
