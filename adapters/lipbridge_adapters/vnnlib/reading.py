"""VNN-LIB files, versions 1.0 and 2.0, as properties of networks in ONNX files.

The numbers of a file are exact decimals. A property for proofs is rounded so that every counterexample of the file is
one of it; a property for the search so that each of its counterexamples is one of the file, and a float of the type
that the network takes. What the file asks is taken over the real numbers.

Source: https://www.vnnlib.org (the standard of version 2.0, December 2025), and the files of VNN-COMP for 1.0.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipbridge.disk.atomic import write_atomically
from lipbridge.errors import InvalidArgument, ModelFileError
from lipbridge.files.formats import get_format
from lipbridge.files.queries import Listed, Query, QueryFormat
from lipbridge.graph.graph import with_axes
from lipbridge.problem.property import Case, Property
from lipbridge_adapters.vnnlib.decimals import exactly
from lipbridge_adapters.vnnlib.formulas import Alternative, alternatives
from lipbridge_adapters.vnnlib.queries import vnnlib_1, vnnlib_2
from lipbridge_adapters.vnnlib.syntax import MOST_TEXT, Declared, declarations

#: Lines of a list at most, and seconds that one may ask for.
MOST_LINES, MOST_SECONDS = 100_000, 10**7
#: How far outputs of the network's file may be from our network's at the same input, relatively.
AGREE = 1e-3
_PAIR = re.compile(r"\(\s*([XY]_[0-9]+)\s+([^\s()]+)\s*\)")
#: numpy's floats.
KINDS: dict[torch.dtype, Any] = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}


class VnnLib(QueryFormat):
    """``.vnnlib`` files, and ``instances.csv`` as VNN-COMP has it."""

    name = "vnnlib"
    suffixes = (".vnnlib", ".vnnlib.gz")
    lists = (".csv",)
    requires = ("onnx", "onnxruntime")
    install = 'pip install "lipbridge[onnx]"'

    def read(self, path: Path, networks: Mapping[str, Path], *, as_real: bool = False) -> Query:
        """One network with one input and one output; boxes of inputs, linear inequalities of outputs."""
        text = _text(path)
        try:
            declared, assertions = declarations(text)
            self._typed(declared, as_real)
            ways = alternatives(declared, assertions)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from None
        names = {declared.network, ""} if declared.version != "1.0" else set(networks)
        if len(networks) != 1 or not set(networks) <= names:
            known = declared.network or "any name"
            raise InvalidArgument("--network", f"give one file, that of `{known}`", sorted(networks))
        return _Asked(declared, ways, next(iter(networks.values())))

    def named(self, path: Path, networks: Mapping[str, Path]) -> dict[str, Path]:
        """By what a file of version 2.0 calls its network."""
        name = declarations(_text(path))[0].network or "N"
        return {known or name: file for known, file in networks.items()}

    def write(self, asked: Property, path: Path, version: str) -> None:
        """Version 1.0, or 2.0 of a network that has one row of inputs and one of outputs."""
        shapes = (1, *asked.input_shape), (1, asked.outputs)
        text = vnnlib_1(asked) if version == "1.0" else vnnlib_2(asked, *shapes)
        write_atomically(path, text.encode())

    def _typed(self, declared: Declared, as_real: bool) -> None:
        for tensor in (declared.input, declared.output):
            if tensor.kind not in ("real", "Real", "float16", "float32", "float64", "bfloat16"):
                raise ModelFileError(f"`{tensor.name}` is of type {tensor.kind}: real numbers are read")
            if tensor.kind not in ("real", "Real") and not as_real:
                raise ModelFileError(
                    f"`{tensor.name}` is of type {tensor.kind}, and what is proved here is so over the real numbers: "
                    "write `real` in its place, or say --as-real"
                )

    def listed(self, path: Path) -> list[Listed]:
        """``network.onnx,query.vnnlib,seconds`` in each line."""
        folder = path.parent.resolve()
        found: list[Listed] = []
        for count, row in enumerate(csv.reader(_text(path).splitlines()), start=1):
            if not any(cell.strip() for cell in row):
                continue
            if count > MOST_LINES:
                raise ModelFileError(f"{path}: more than {MOST_LINES:,} lines")
            where = f"{path}: line {count}"
            if len(row) != 3:
                raise ModelFileError(f"{where}: a network, a query and seconds are expected, with commas between")
            files: list[Path] = []
            for cell, suffixes in zip(row, ((".onnx", ".onnx.gz"), self.suffixes), strict=False):
                file = cell.strip()
                if "\x00" in file or not file.lower().endswith(suffixes):
                    raise ModelFileError(f"{where}: {file!r} does not end in {suffixes[0]}")
                whole = (folder / file).resolve()
                if not whole.is_relative_to(folder):
                    raise ModelFileError(f"{where}: {file!r} is not in the folder of the list")
                files.append(whole)
            try:
                seconds = float(row[2])
            except ValueError:
                seconds = math.nan
            if not 0.0 < seconds <= MOST_SECONDS:
                raise ModelFileError(f"{where}: {row[2]!r} is no number of seconds")
            found.append(Listed(files[0], files[1], seconds))
        if not found:
            raise ModelFileError(f"{path}: the list is empty")
        return found

    def capabilities(self) -> Mapping[str, Sequence[str]]:
        """By the options of ``supports``."""
        opsets, operators = get_format("onnx").supported()
        return {
            "onnx-opset-versions": [str(opsets[0]), str(opsets[-1])],
            "onnx-element-types": ["real"],
            "onnx-operators": operators,
            "vnnlib-versions": ["1.0", "2.0"],
            "hidden-node-theories": ["NH"],
            "multiple-input-output-theories": ["SIO"],
            "multiple-network-theories": ["SNET"],
            "multiple-node-comparison-theories": ["SNC"],
            "arithmetic-complexity-theories": ["BND", "OUTC"],
            "optimised-disjunctive-reasoning": ["false"],
            "serialise-assignments": ["false"],
        }


def _operators(path: Path) -> frozenset[str]:
    """Of the nodes of a file that was read before, and of what is nested in them."""
    onnx: Any = importlib.import_module("onnx")
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        graphs: list[Any] = [onnx.load_model_from_string(file.read()).graph]
    found: set[str] = set()
    while graphs:
        for node in graphs.pop().node:
            found.add(node.op_type)
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return frozenset(found)


def _text(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(MOST_TEXT + 1)
        if len(data) > MOST_TEXT:
            raise ModelFileError(f"{path}: it holds more than {MOST_TEXT:,} bytes")
        return data.decode("utf-8")
    except (OSError, EOFError, zlib.error) as error:
        raise ModelFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError:
        raise ModelFileError(f"{path}: it is no text in UTF-8") from None


class _Asked(Query):
    def __init__(self, declared: Declared, ways: Sequence[Alternative], path: Path) -> None:
        self.declared, self.ways, self.path = declared, ways, path
        # Whatever the file's own shapes say: the network is read, and checked, by the reader of networks.
        self.graph = with_axes(get_format("onnx").read(path)[0])
        self.session = _Session(path)
        self.version, self.operators = declared.version, _operators(path)
        for tensor, own, shape, what in (
            (declared.input, self.graph.input_shape, self.session.input_shape, "input"),
            (declared.output, self.graph.output_shape, self.session.output_shape, "output"),
        ):
            fits = declared.version == "1.0" or (
                len(shape) == len(tensor.shape)
                and all(n is None or n == m for n, m in zip(shape, tensor.shape, strict=True))
            )
            if not fits or math.prod(own) != tensor.size:
                told = ["?" if n is None else n for n in shape]
                raise ModelFileError(
                    f"{path}: the query's {what} `{tensor.name}` has {tensor.size} numbers in the shape "
                    f"{list(tensor.shape)}, and the network's has the shape {told} and, for one input, {math.prod(own)}"
                )
        self.asked = self._property(_Outward())
        self.tried = self._property(_Inward(self.session.dtype))
        self.dtype = self.session.dtype
        self._agree()

    def _property(self, rounding: _Rounding) -> Property | None:
        cases = [self._case(way, rounding) for way in self.ways]
        held = tuple(case for case in cases if case is not None)
        return Property(held) if held else None

    def _case(self, way: Alternative, rounding: _Rounding) -> Case | None:
        n, m = self.declared.input.size, self.declared.output.size
        lower = [rounding.lower(*way.lower[i]) for i in range(n)]
        upper = [rounding.upper(*way.upper[i]) for i in range(n)]
        if not all(a <= b and math.isfinite(a) and math.isfinite(b) for a, b in zip(lower, upper, strict=True)):
            if rounding.outward:
                raise ModelFileError(f"{self.path}: bounds of inputs are larger than floats can be")
            return None
        rows, limits = np.zeros((max(len(way.outputs), 1), m)), np.ones(max(len(way.outputs), 1))
        for row, (factors, limit, _) in enumerate(way.outputs):
            scale = math.lcm(*(a.denominator for a in factors.values()))
            for place, a in factors.items():
                rows[row, place] = float(a * scale) if abs(a * scale) < 2**1000 else math.inf
                if not math.isfinite(rows[row, place]) or Fraction(float(rows[row, place])) != a * scale:
                    raise ModelFileError(f"the query has a factor that no float can hold: {a}")
            limits[row] = rounding.limit(limit * scale)
        if not np.isfinite(limits).all():
            raise ModelFileError("the query has a bound that no float can hold")
        shape = self.graph.input_shape
        low, high = (torch.tensor(side, dtype=torch.float64).reshape(shape) for side in (lower, upper))
        return Case(low, high, torch.tensor(rows), torch.tensor(limits))

    def _agree(self) -> None:
        """The file as it is run and the network that was read: they must be one at the middle of the first box."""
        if self.asked is None:
            return
        case = (self.tried or self.asked).cases[0]
        x = 0.5 * case.lower + 0.5 * case.upper
        x = x.to(self.dtype).double()
        ours = self.graph(x[None].to(self.graph.device)).flatten().cpu().numpy()
        theirs = self.session.run(x, self.declared)
        if theirs is None or not np.allclose(ours, theirs, rtol=AGREE, atol=AGREE * (1.0 + np.abs(ours).max())):
            raise ModelFileError(f"{self.path}: the network, when it is run, gives other outputs than when it is read")

    def inputs(self, assignment: str) -> Tensor | None:
        """Of either version's form; outputs are not looked at, since they can be computed."""
        size = self.declared.input.size
        if assignment.lstrip().startswith("("):
            pairs = _PAIR.findall(assignment)
            numbers = [value for name, value in pairs if name.startswith("X_")]
            if [name for name, _ in pairs[: len(numbers)]] != [f"X_{i}" for i in range(size)]:
                return None
        else:
            words = assignment.replace("[", " [", 1).split()
            if words[:1] != [self.declared.input.name]:
                return None
            after = next((i for i, word in enumerate(words) if word.endswith("]")), len(words))
            numbers = words[after + 1 : after + 1 + size]
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            return None
        if len(values) != size or not all(map(math.isfinite, values)):
            return None
        x = torch.tensor(values, dtype=torch.float64).to(self.dtype).double()
        return x.reshape(self.graph.input_shape) if bool(torch.isfinite(x).all()) else None

    def failing(self, x: Tensor) -> tuple[float, str]:
        """Of the alternative that is nearest to be obeyed."""
        return self._failing(*self._run(x))

    def _run(self, x: Tensor) -> tuple[list[float], list[float]]:
        """The numbers of an input and of the file's outputs, none if these are not finite."""
        y = self.session.run(x, self.declared)
        fine = y is not None and bool(np.isfinite(y).all())
        return [float(value) for value in x.flatten()], [float(value) for value in y] if y is not None and fine else []

    def _failing(self, xs: Sequence[float], ys: Sequence[float]) -> tuple[float, str]:
        if not ys:
            return math.inf, "the file gives no finite outputs"
        worst: tuple[Fraction, str] | None = None
        for way in self.ways:
            broken = [(room, what) for room, strict, what in _rooms(way, xs, ys) if room < 0 or (strict and room == 0)]
            if not broken:
                return 0.0, ""
            own = min(broken, key=lambda pair: pair[0])
            worst = own if worst is None or own[0] > worst[0] else worst
        if worst is None:
            return math.inf, "the query contradicts itself"
        return float(-worst[0]), f"{worst[1]} is broken by {float(-worst[0]):.2g}"

    def confirmed(self, x: Tensor) -> str | None:
        """All inequalities are looked at once more, in fractions, for the floats that are printed."""
        xs, ys = self._run(x)
        if self._failing(xs, ys)[1]:
            return None
        if self.declared.version == "1.0":
            pairs = [f"({letter}_{i} {exactly(v)})" for letter, vs in (("X", xs), ("Y", ys)) for i, v in enumerate(vs)]
            return "(" + "\n".join(pairs) + ")"
        lines: list[str] = []
        for tensor, values in ((self.declared.input, xs), (self.declared.output, ys)):
            lines.append(f"{tensor.name} {tensor.kind} [{','.join(map(str, tensor.shape))}]")
            lines += [exactly(value) for value in values]
        return "\n".join(lines)


def _rooms(way: Alternative, x: Sequence[float], y: Sequence[float]) -> Iterator[tuple[Fraction, bool, str]]:
    """By how much each inequality is obeyed, whether it is strict, and what it is of."""
    for bounds, sign in ((way.lower, 1), (way.upper, -1)):
        for place, (bound, strict) in bounds.items():
            yield sign * (Fraction(x[place]) - bound), strict, "a bound of the inputs"
    for factors, limit, strict in way.outputs:
        total = sum((a * Fraction(y[place]) for place, a in factors.items()), Fraction(0))
        yield limit - total, strict, "an inequality of the outputs"


class _Rounding:
    """To floats: of the ends of boxes, and of limits from above."""

    outward: bool

    def lower(self, value: Fraction, strict: bool) -> float:
        raise NotImplementedError

    def upper(self, value: Fraction, strict: bool) -> float:
        return -self.lower(-value, strict)

    def limit(self, value: Fraction) -> float:
        raise NotImplementedError


class _Outward(_Rounding):
    outward = True

    def lower(self, value: Fraction, strict: bool) -> float:
        return _below(value)

    def limit(self, value: Fraction) -> float:
        return -_below(-value)


class _Inward(_Rounding):
    outward = False

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype: Any = KINDS[dtype]

    def lower(self, value: Fraction, strict: bool) -> float:
        """The least float of the type that is at least the value, or above it."""
        with np.errstate(over="ignore"):
            found = self.dtype(_nearest(value))
        while np.isfinite(found) and (Fraction(float(found)) < value or (strict and Fraction(float(found)) == value)):
            found = np.nextafter(found, self.dtype(np.inf))
        return float(found)

    def limit(self, value: Fraction) -> float:
        return _below(value)


def _nearest(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _below(value: Fraction) -> float:
    """The largest double that is at most the value, about."""
    found = _nearest(value)
    while math.isfinite(found) and Fraction(found) > value:
        found = math.nextafter(found, -math.inf)
    return found


class _Session:
    """The file of a network, run in ONNX Runtime.

    Attributes:
        input_shape, output_shape: with the batch, None for what is open.
        dtype: of the input.
    """

    def __init__(self, path: Path) -> None:
        runtime: Any = importlib.import_module("onnxruntime")  # here, since only verify needs it; it carries no types
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        source = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else str(path)
        try:
            self.session: Any = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # whatever the runtime says of the file
            raise ModelFileError(f"{path}: ONNX Runtime refuses it: {error}") from error
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ModelFileError(f"{path}: it has {len(inputs)} inputs and {len(outputs)} outputs, and not one of each")
        self.name = inputs[0].name
        self.input_shape, self.output_shape = _shape(inputs[0].shape), _shape(outputs[0].shape)
        kinds = {"tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(float16)": torch.float16}
        if inputs[0].type not in kinds:
            raise ModelFileError(f"{path}: its input is {inputs[0].type}, and not of floats")
        self.dtype = kinds[inputs[0].type]

    def run(self, x: Tensor, declared: Declared) -> np.ndarray[Any, Any] | None:
        """The output's numbers in a row; None if there are not as many as declared, or it cannot be run."""
        shape = declared.input.shape
        if declared.version == "1.0":
            shape = tuple(1 if n is None else n for n in self.input_shape)
            if math.prod(shape) != declared.input.size:
                return None
        try:
            y = self.session.run(None, {self.name: x.numpy().astype(KINDS[self.dtype]).reshape(shape)})[0]
        except Exception:  # as above
            return None
        y = np.asarray(y, dtype=np.float64).flatten()
        return y if len(y) == declared.output.size else None


def _shape(shape: Sequence[Any]) -> tuple[int | None, ...]:
    return tuple(n if isinstance(n, int) else None for n in shape)


__all__ = ["VnnLib"]
