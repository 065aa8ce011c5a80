"""The torus of a convolution: the smallest circular convolution that holds it, and its symbol at each frequency.

A circular convolution is block diagonal in the Fourier basis, so its spectral norm is the largest of one small block
for each frequency. Any other convolution is held in one: it is the circular convolution's matrix with rows and columns
left out (zero padding), so its norm is at most the circular one's. Axis by axis:

- *Zero padding.* Output i reads position ``i s - b + j``. On a torus of N positions nothing wraps around into the
  input of size n if ``N >= n + b`` and N is above the last position read: n + 1 for a 3-kernel with padding 1, not
  n + k - 1.
- *Stride* s. Positions are split by their rest modulo s into s times the channels (space to depth), and the stride is
  one on a torus of N / s: the symbol has s times the columns at an s-th of the frequencies.
- *Dilation* d. Outputs i and i + 1 read different rests modulo d: the operator falls apart into d / gcd(s, d)
  undilated ones of stride s / gcd(s, d) on every d-th input; the torus is the largest that one of them needs.
- *Circular padding* is its own torus, exactly, if the stride divides the size.
- *Reflection and replication*, and circular padding else: the convolution without padding on the padded input, times
  the norm of the padding, which is the root of how often it copies the most copied input. Up to a factor 2 in 2-D too
  large for padding by less than half the input.

The frequency blocks are due to Sedghi, Gupta, Long 2019 ("The singular values of convolutional layers"); the tight
torus, its stride and its dilation are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from lipbridge.norms.conv_geometry import Axis, Convolution

#: Entries of all the symbols that are held at once: larger sets of frequencies are walked in parts of that size.
ENTRIES = 2**22


@dataclass(frozen=True)
class AxisTorus:
    """One axis: ``frequencies`` of the torus, the stride as ``phases``, each tap's (phase, shift), what P adds."""

    frequencies: int
    phases: int
    taps: tuple[tuple[int, int], ...]
    copies: int
    exact: bool


def axis_torus(axis: Axis) -> AxisTorus:
    """The smallest torus that holds one axis of a convolution; see the module."""
    padded = axis.mode != "zeros" and axis.padding != (0, 0)
    if padded and axis.mode == "circular" and axis.size % axis.stride == 0 and axis.outputs * axis.stride <= axis.size:
        frequencies, exact = axis.size // axis.stride, axis.outputs * axis.stride == axis.size
        return AxisTorus(frequencies, axis.stride, _taps(axis.kernel, axis.dilation, axis.stride), 1, exact)
    size, before = (axis.padded, 0) if padded else (axis.size, axis.padding[0])
    if axis.kernel == 1:  # the same matrix at every frequency
        reads = any(0 <= output * axis.stride - before < size for output in range(axis.outputs))
        return AxisTorus(1, 1, ((0, 0),), axis.copies if padded else 1, reads and not padded)
    common = math.gcd(axis.stride, axis.dilation)
    stride, parts = axis.stride // common, axis.dilation // common
    needed = 1
    for part in range(min(parts, axis.outputs)):
        first = part * axis.stride - before
        rest = first % axis.dilation
        offset = (first - rest) // axis.dilation  # of the first position read, in the sublattice's own count
        inputs = max(0, -((rest - size) // axis.dilation))
        last_output = stride * ((axis.outputs - part - 1) // parts)
        needed = max(needed, last_output + 1, last_output + offset + axis.kernel, inputs - min(offset, 0))
    return AxisTorus(-(-needed // stride), stride, _taps(axis.kernel, 1, stride), axis.copies if padded else 1, False)


def _taps(kernel: int, dilation: int, stride: int) -> tuple[tuple[int, int], ...]:
    return tuple((j * dilation % stride, j * dilation // stride) for j in range(kernel))


@dataclass(frozen=True)
class Torus:
    """The torus of a convolution, with the kernel's taps in row-major order."""

    axes: tuple[AxisTorus, ...]
    groups: int

    @property
    def exact(self) -> bool:
        """Whether the convolution is the torus's, not a part of it."""
        return all(axis.exact for axis in self.axes)

    @property
    def padding_norm_squared(self) -> int:
        """What the padding adds to the square of the norm: its own squared norm."""
        return math.prod(axis.copies for axis in self.axes)

    @property
    def frequency_count(self) -> int:
        """The frequencies that are looked at: a real kernel has conjugate symbols at opposite ones, so about half."""
        return math.prod(self._sides())

    def _sides(self) -> tuple[int, ...]:
        *others, last = (axis.frequencies for axis in self.axes)
        return (*others, last // 2 + 1)

    @property
    def phases(self) -> int:
        """By how much the symbol is wider than the group's input channels: the product of the strides."""
        return math.prod(axis.phases for axis in self.axes)

    def taps_by_phase(self) -> list[list[int]]:
        """The taps of each phase that has any, as indices into the flattened kernel."""
        found: list[list[int]] = [[] for _ in range(self.phases)]
        for index, taps in enumerate(product(*(axis.taps for axis in self.axes))):
            phase = 0
            for axis, (rest, _) in zip(self.axes, taps, strict=True):
                phase = phase * axis.phases + rest
            found[phase].append(index)
        return [taps for taps in found if taps]

    def parts(self, entries_each: int) -> Iterator[tuple[int, int]]:
        """Ranges of frequencies, so that the symbols of one hold at most about ``ENTRIES`` entries."""
        step = max(1, ENTRIES // max(1, entries_each))
        for start in range(0, self.frequency_count, step):
            yield start, min(start + step, self.frequency_count)

    def turns(self, start: int, stop: int, device: torch.device) -> list[Tensor]:
        """Per axis ``(stop - start, taps)``: numbers t so that tap j has the twiddle ``exp(2 pi i t / frequencies)``.

        The taps of one axis are repeated along the others', so that each list holds all taps of the flattened kernel.
        """
        index = torch.arange(start, stop, device=device)
        kernel = [len(axis.taps) for axis in self.axes]
        found: list[Tensor] = []
        for number, (axis, side) in enumerate(zip(self.axes, self._sides(), strict=True)):
            below = math.prod(self._sides()[number + 1 :])
            frequency = index // below % side
            shifts = _arithmetic(axis, device)
            turns = frequency[:, None] * shifts[None, :] % axis.frequencies
            turns = turns.reshape(len(turns), *(kernel[number] if k == number else 1 for k in range(len(kernel))))
            found.append(turns.expand(len(turns), *kernel).reshape(len(turns), -1))
        return found


def _arithmetic(axis: AxisTorus, device: torch.device) -> Tensor:
    # Shift j is floor(j dilation / stride), made on the device: a transfer from the host would wait for it.
    step = axis.taps[1][0] + axis.phases * axis.taps[1][1] if len(axis.taps) > 1 else 0
    return torch.arange(len(axis.taps), device=device) * step // axis.phases


def torus(geometry: Convolution, weight: Tensor) -> Torus:
    """The torus of a convolution with kernels of ``weight``'s shape.

    Law: the operator's spectral norm is at most the largest symbol's times the norm of the padding; equal if exact.

    Raises:
        InvalidArgument: if the kernel does not fit the input.
    """
    geometry.output_shape(weight)
    return Torus(tuple(axis_torus(axis) for axis in geometry.geometry(tuple(weight.shape[2:]))), geometry.groups)


def twiddles(torus: Torus, start: int, stop: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(stop - start, taps)`` of the frequencies of a range, in the dtype and on the device."""
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    angle = torch.zeros((), dtype=dtype, device=like.device)
    for axis, turns in zip(torus.axes, torus.turns(start, stop, like.device), strict=True):
        angle = angle + turns.to(dtype) * (2.0 * math.pi / axis.frequencies)
    return torch.cos(angle), torch.sin(angle)


def symbols(weight: Tensor, torus: Torus, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part ``(frequencies, groups, out / groups, phases * in / groups)`` of the symbols.

    Law: the torus's singular values are those of all the symbols.
    """
    shape = (len(cosines), torus.groups, weight.shape[0] // torus.groups, weight.shape[1])
    kernel = weight.flatten(2).permute(2, 0, 1).flatten(1).to(cosines.dtype)
    phases = torus.taps_by_phase()
    if len(phases) == 1:
        return (cosines @ kernel).reshape(shape), (sines @ kernel).reshape(shape)
    real = [(cosines[:, taps] @ kernel[taps]).reshape(shape) for taps in phases]
    imaginary = [(sines[:, taps] @ kernel[taps]).reshape(shape) for taps in phases]
    return torch.cat(real, dim=-1), torch.cat(imaginary, dim=-1)
