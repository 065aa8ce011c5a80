"""``lipbridge export --to vnncomp``: questions about test points for other verifiers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import typer
from torch import Tensor

from lipbridge.cli import parse
from lipbridge.cli.output import print_json, spinner
from lipbridge.errors import InvalidArgument
from lipbridge.files.benchmarks import Benchmark, Instance, get_benchmark
from lipbridge.files.models import Reading
from lipbridge.graph.graph import Graph
from lipbridge.problem.claim import LipschitzClaim
from lipbridge.processes import stdout_to_stderr


@dataclass(frozen=True)
class Asked:
    """Test points of ``data``, or of the model's own, at radii in l_inf; ``per_rival`` asks of each class by itself."""

    data: str | None
    radii: Sequence[float]
    points: int
    per_rival: bool
    timeout: int


def asked_about(data: str | None, radius: str, points: int, per_rival: bool, timeout: int) -> Asked:
    """The options, checked."""
    if points < 1:
        raise InvalidArgument("--points", "be at least 1", points)
    if timeout < 1:
        raise InvalidArgument("--timeout", "be at least 1", timeout)
    return Asked(data, parse.radii(radius), points, per_rival, timeout)


def export_questions(
    path: str,
    out: Path,
    to: str,
    asked: Asked,
    reading: Reading,
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the folder; a row for each instance with ``--json``."""
    from lipbridge.cli.models import open_model
    from lipbridge.files.models import dataset_of

    benchmark = _into(out, to, overwrite=overwrite)
    opened = open_model(path, reading)
    dataset = dataset_of(opened, asked.data)
    if dataset is None:
        raise InvalidArgument("--data", "name a dataset, since the model names none", asked.data)
    with spinner() as show, stdout_to_stderr():
        show(f"{opened.name}: {out}")
        graph, _ = benchmark.network(opened.graph, out)
        x, labels = dataset.test_inputs[: asked.points], dataset.test_labels[: asked.points]
        inputs = x.double().reshape(len(x), *graph.input_shape)
        instances = list(_instances(graph, inputs, [int(label) for label in labels], asked))
        benchmark.questions(out, instances, asked.timeout)
    _told(opened.name, out, instances, as_json=as_json)


def claimed(constant: float, norm: str, box: str, distance: str) -> LipschitzClaim:
    """The options, checked; L is rounded down to float32, as files hold it."""
    from lipbridge.vocabulary import as_norm

    (low, high), (nearest, farthest) = parse.two(box, "--box"), parse.two(distance, "--distance")
    claim = LipschitzClaim(constant, as_norm(norm, "--norm"), low, high, nearest, farthest)
    held = torch.tensor(claim.constant, dtype=torch.float64)
    down = held.float()
    if down.double() > held:
        down = torch.nextafter(down, torch.zeros_like(down))
    return replace(claim, constant=float(down))


def export_claim(
    path: str,
    out: Path,
    to: str,
    claim: LipschitzClaim,
    timeout: int,
    reading: Reading,
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    """The same for a bound of the Lipschitz constant: of the twin network, and of two networks."""
    from lipbridge.cli.models import open_model
    from lipbridge.lowering.twin import twin
    from lipbridge.verifiers.claims import judge_claim

    benchmark = _into(out, to, overwrite=overwrite)
    opened = open_model(path, reading)
    with spinner() as show, stdout_to_stderr():
        show(f"{opened.name}: {out}")
        graph = opened.graph
        written, same = benchmark.network(twin(graph, claim.constant, claim.norm), out)
        instances = [
            Instance(*found) for found in judge_claim(graph, written, claim, same=same, seconds=float(timeout))
        ]
        benchmark.questions(out, instances, timeout)
        benchmark.pairs(graph, out, claim, instances, timeout)
    _told(opened.name, out, instances, as_json=as_json)


def _into(out: Path, to: str, *, overwrite: bool) -> Benchmark:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not overwrite)):
        raise InvalidArgument("--out", "be a new or empty folder, or come with --overwrite", str(out))
    benchmark = get_benchmark(to)
    benchmark.require()
    return benchmark


def _told(network: str, out: Path, instances: Sequence[Instance], *, as_json: bool) -> None:
    if as_json:
        print_json([_row(network, out, instance) for instance in instances])
        return
    verdicts = Counter(instance.known.verdict.value for instance in instances)
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    typer.echo(f"{network}: {out} (our verdicts on {len(instances)} properties: {told})")


def _row(network: str, out: Path, instance: Instance) -> dict[str, object]:
    known = instance.known
    return {
        "network": network,
        "instance": instance.name,
        "verdict": known.verdict.value,
        "margin": known.margin if math.isfinite(known.margin) else None,
        "seconds": known.seconds,
        "folder": str(out),
    }


def _instances(graph: Graph, inputs: Tensor, labels: Sequence[int], asked: Asked) -> Iterator[Instance]:
    from lipbridge.problem.property import robust
    from lipbridge.verifiers.properties import judge

    classes = graph.output_shape[0]
    for radius in asked.radii:
        for point, (x, label) in enumerate(zip(inputs, labels, strict=True)):
            others = [k for k in range(classes) if k != label]
            for rivals in [[k] for k in others] if asked.per_rival else [others]:
                own = robust(x, label, classes, radius, rivals=rivals)
                name = f"point{point}_radius{radius!r}" + (f"_class{rivals[0]}" if asked.per_rival else "")
                yield Instance(name, own, judge(graph, own))


__all__ = ["Asked", "asked_about", "export_questions"]
