"""Study files that are written by a program: TOML that :func:`lipbridge.study.config.parse_study` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import tomli_w

from lipbridge.layers.architectures import DENSE
from lipbridge.vocabulary import Norm


def study_text(tables: Mapping[str, Any]) -> str:
    """TOML of a study file's tables; what is None or an empty table is left out, and tuples are lists.

    Law: reading gives the same tables.
    """
    return tomli_w.dumps(_plain(tables))


def sweep_file(
    data: str,
    penalties: Sequence[float],
    seeds: int | Sequence[int] = 1,
    norm: Norm = 2,
    arch: str = DENSE,
    changes: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    warm_start: bool = False,
    rescale: bool = False,
    engine: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
) -> str:
    """The study file of a frontier: one network for each penalty and seed, with its proved bound and its witness.

    Args:
        data: a dataset's name or a folder.
        penalties: weights of the bound in the loss.
        changes: to the Recipe, by field.
        settings: changes to its TrainingConfig, by field.
        warm_start: each network starts from the weights of the one before, in the order of the penalties.
        engine, limits: keys of these tables.
    """
    family: dict[str, Any] = {
        "name": "penalised",
        "data": data,
        "norm": norm,
        "arch": arch,
        "seeds": seeds if isinstance(seeds, int) else list(seeds),
        "rescale": rescale,
        "warm_start": "penalty" if warm_start else None,
        "recipe": changes,
        "training": settings,
        "grid": {"penalty": [float(penalty) for penalty in penalties]},
    }
    return study_text(
        {
            "name": "sweep",
            "title": f"Frontier of {data}, l{norm}",
            "limits": limits,
            "engine": engine,
            "networks": [family],
            "problems": [{"norm": norm, "verifiers": ["trivial"]}],
        }
    )


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        items = {key: _plain(item) for key, item in cast(Mapping[str, object], value).items()}
        return {key: item for key, item in items.items() if item is not None and item != {}}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast(Sequence[object], value)]
    return value


__all__ = ["study_text", "sweep_file"]
