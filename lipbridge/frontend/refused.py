"""Operations that no Graph will ever hold, each with the reason that a person needs.

What is merely missing is refused by the builder, by name. What stands here jumps, draws random numbers, mixes functions
of the input by products or has unbounded slopes: there is no global Lipschitz constant to prove, and the reason says
what to do instead, where something can be done.
"""

from __future__ import annotations

from collections.abc import Mapping

PRODUCT = "A product of two functions of the input has no Lipschitz constant."
_ATTENTION = f"Attention multiplies functions of the input with one another. {PRODUCT}"
_GATES = f"Its gates multiply functions of the input with one another. {PRODUCT}"
_VARIANCE = (
    "A variance or deviation alone is no layer with a global Lipschitz constant; normalisation is read where it stands "
    "as layer_norm, group_norm or the like."
)
_JUMPS = "It jumps, so it has no Lipschitz constant."
_INDICES = "Its result is indices, which jump, so it has no Lipschitz constant."
_COMPARISON = (
    "A comparison jumps, so it has no Lipschitz constant; write a choice with relu, abs, clamp, maximum or minimum."
)
_RANDOM = "It draws random numbers, so the network is no function of its input; leave them out in eval mode."
_NORM = (
    "A norm is no node of a Graph, and dividing by one has no global Lipschitz constant: bound the network before the "
    "normalisation."
)
_QUOTIENT = "Its slopes grow without limit, so it has no global Lipschitz constant."
_COMPLEX = "The network is no longer one of real numbers (Fourier transforms and complex tensors are not read)."
_PLACES = "It reads places that depend on the input, and has no global Lipschitz constant."

#: Reason -> operations.
REASONS: Mapping[str, tuple[str, ...]] = {
    _ATTENTION: (
        "scaled_dot_product_attention",
        "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
    ),
    PRODUCT: ("bmm", "baddbmm", "outer", "cross", "linalg_cross", "cov", "corrcoef"),
    _VARIANCE: ("var", "std", "var_mean", "std_mean"),
    _GATES: ("lstm", "lstm_cell", "gru", "gru_cell", "glu"),
    _JUMPS: (
        *("sign", "sgn", "signbit", "heaviside", "round", "floor", "ceil", "trunc", "fix", "frac"),
        *("remainder", "fmod", "floor_divide", "threshold", "hardshrink"),
        *("isnan", "isinf", "isfinite", "bucketize", "searchsorted", "one_hot"),
    ),
    _INDICES: ("argmax", "argmin", "argsort", "nonzero", "multinomial"),
    _COMPARISON: (
        *("gt", "lt", "ge", "le", "eq", "ne", "greater", "less", "greater_equal", "less_equal", "not_equal"),
        *("logical_not", "logical_and", "logical_or", "logical_xor"),
    ),
    _RANDOM: (
        *("rand_like", "randn_like", "randint_like", "bernoulli", "normal", "poisson", "uniform", "binomial"),
        *("rrelu_with_noise", "exponential", "cauchy", "log_normal", "geometric", "random"),
    ),
    _NORM: ("linalg_vector_norm", "norm", "linalg_norm", "cdist", "_cdist_forward", "pairwise_distance"),
    _QUOTIENT: (
        *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal"),
        *("tan", "sinh", "cosh", "asin", "acos", "acosh", "atanh", "erfinv", "lgamma", "digamma", "prod", "cumprod"),
        *("cosine_similarity",),
    ),
    _COMPLEX: (
        *("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2"),
        *("fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "_fft_r2c", "_fft_c2r", "_fft_c2c"),
        *("view_as_complex", "view_as_real", "complex", "polar", "real", "imag", "conj", "_conj", "stft"),
    ),
    _PLACES: (
        *("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "affine_grid_generator", "embedding"),
        *("max_unpool1d", "max_unpool2d", "max_unpool3d"),
    ),
}


def reason_of(operation: str) -> str | None:
    """Why an operation is never a layer; None if it may be one."""
    return next((reason for reason, names in REASONS.items() if operation in names), None)
