"""What the values of a study file mean, checked without data: names, fields of recipes, options, files, norms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from lipbridge import checks
from lipbridge.activations.registry import activation
from lipbridge.data import DATASET_NAMES
from lipbridge.data.datasets import VALIDATION
from lipbridge.disk.toml_lines import Path as Place
from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.files.hub import HubModel, is_hub
from lipbridge.layers.architectures import CONVOLUTIONAL, DENSE, FACTORY, Padding, is_factory
from lipbridge.problem.options import read_options
from lipbridge.study import grid
from lipbridge.study.faults import Faults, shown, unknown
from lipbridge.study.file_tables import ModelTable, NetworksTable, StudyTable, Table, VerifierTable
from lipbridge.study.names import chosen, label_of, model_name
from lipbridge.training.config import TrainingConfig
from lipbridge.training.recipes import Start
from lipbridge.verifiers import VerifierInfo, list_verifiers
from lipbridge.vocabulary import as_norm


def check_table(place: Place, table: Table, faults: Faults, base: Path) -> None:
    """Check one table of an array by itself; ``base`` is what relative paths are relative to."""
    if isinstance(table, NetworksTable):
        _networks(place, table, faults, base)
    elif isinstance(table, ModelTable):
        _model(place, table, faults, base)
    elif isinstance(table, VerifierTable):
        known = {info.name: info for info in list_verifiers()}
        if table.name in known:
            _options((*place, "options"), known[table.name], table.options, faults)
        else:
            faults.add((*place, "name"), unknown(table.name, known, "verifier"))


def check_together(tables: StudyTable, faults: Faults) -> tuple[str, ...]:
    """Check what the tables say of each other; returns what a user should know."""
    if not tables.networks and not tables.models:
        faults.add((), "there is neither a [[networks]] nor a [[models]], so there is nothing to study")
    _distinct(("models",), [table.name for table in tables.networks], [model_name(t) for t in tables.models], faults)
    _repeated(("networks",), "name", [table.name for table in tables.networks], faults)
    _repeated(("verifiers",), "label", [label_of(t, tables.verifiers) for t in tables.verifiers], faults)
    names = _network_names(tables)
    known = {info.name: info for info in list_verifiers()}
    for section, items in (("problems", tables.problems), ("certificates", tables.certificates)):
        for place, item in enumerate(items):
            for at, pattern in enumerate(item.networks or ()):
                if not any(grid.matches(pattern, *each) for each in names):
                    all_names = [name for each in names for name in dict.fromkeys(each)]
                    faults.add((section, place, "networks", at), f"matches no network; {unknown(pattern, all_names)}")
            for at, word in enumerate(item.verifiers or ()):
                found = chosen(word, tables.verifiers)
                if not found and word not in known:
                    labels = [label_of(table, tables.verifiers) for table in tables.verifiers]
                    faults.add((section, place, "verifiers", at), unknown(word, [*labels, *known], "verifier"))
                elif section == "certificates":
                    for name in dict.fromkeys([table.name for table in found] or [word]):
                        if name in known and not known[name].certifies:
                            able = ", ".join(info.name for info in known.values() if info.certifies)
                            text = f"{name} cannot certify predictions; these can: {able}"
                            faults.add((section, place, "verifiers", at), text)
    return tuple(_missing(tables, known))


def _missing(tables: StudyTable, known: Mapping[str, VerifierInfo]) -> Iterable[str]:
    lists = [item.verifiers or [] for item in [*tables.problems, *tables.certificates]]
    words = {word for words in lists for word in words} | {table.name for table in tables.verifiers}
    for name in sorted(words & set(known)):
        if not known[name].installed:
            yield f"verifier {name} is not installed, and its rows will say so; {known[name].install}"


def _network_names(tables: StudyTable) -> list[tuple[str, ...]]:
    trained = [
        (point.network(seed), point.group, point.family)
        for table in tables.networks
        for point in grid.points(table)
        for seed in table.seeds
    ]
    return [*trained, *((model_name(table),) for table in tables.models)]


def _repeated(section: Place, key: str, names: Sequence[str], faults: Faults) -> None:
    counts = Counter(names)
    for place, name in enumerate(names):
        if counts[name] > 1 and name in names[:place]:
            words = f"should be another one than that of {section[0]}[{names.index(name)}]; found {name!r}"
            faults.add((*section, place, key), words)


def _distinct(section: Place, families: Sequence[str], models: Sequence[str], faults: Faults) -> None:
    for place, name in enumerate(models):
        if name in families or name in models[:place]:
            faults.add((*section, place, "name"), f"should be a name that no other network has; found {name!r}")


def _networks(place: Place, table: NetworksTable, faults: Faults, base: Path) -> None:
    settings = {"data": table.data, "arch": table.arch}
    for key, value in settings.items():
        faults.checked((*place, key), value, partial(check_value, key, value, base))
    for section, given, known in (("recipe", table.recipe, grid.RECIPE), ("training", table.training, grid.TRAINING)):
        for key, value in given.items():
            _setting((*place, section, key), key, value, known, faults, base)
    known = [*grid.OWN, *grid.RECIPE, *grid.TRAINING]
    for key, values in table.grid.items():
        at = (*place, "grid", key)
        if key in table.recipe or key in table.training:
            faults.add(at, "stands above too; say it once")
        for index, value in enumerate(values):
            _setting((*at, index), key, value, known, faults, base)
            if value in values[:index]:
                faults.add((*at, index), f"should hold each value once; found {shown(value)} again")
    archs = table.grid.get("arch", [table.arch])
    own = next((arch for arch in archs if isinstance(arch, str) and arch.rpartition(":")[1]), None)
    for key in [*table.recipe, *(key for key in table.grid if key in grid.RECIPE)]:
        if own is not None:
            section = "recipe" if key in table.recipe else "grid"
            faults.add((*place, section, key), f"should be left out with {own}, which decides it")
    axis = table.warm_start
    if axis is not None and (axis not in table.grid or axis in grid.SHAPING):
        able = [key for key in table.grid if key not in grid.SHAPING]
        words = (
            f"should be a key of the grid that leaves the network's shape as it is ({', '.join(able) or 'none here'})"
        )
        faults.add((*place, "warm_start"), f"{words}; found {axis!r}")


def _setting(place: Place, key: str, value: object, known: Sequence[str], faults: Faults, base: Path) -> None:
    if key in known:
        faults.checked(place, value, lambda: check_value(key, value, base))
        return
    place = place if place[-1] == key else place[:-1]
    if key in ("norm", "data", "arch"):
        faults.add(place, "stands in [[networks]] itself, or in its grid")
    elif key == "seed":
        faults.add(place, "stands in [[networks]] itself, as seeds")
    elif key in grid.RECIPE or key in grid.TRAINING:
        faults.add(place, f"belongs into networks.{'recipe' if key in grid.RECIPE else 'training'}")
    else:
        faults.add(place, unknown(key, known, "key"))


def check_value(key: str, value: Any, base: Path) -> None:
    """Check one setting of a network.

    Raises:
        LipbridgeError: for a value outside its domain.
    """
    if key == "data":
        _data(value, base)
    elif key == "arch":
        _arch(value, base)
    elif key == "norm":
        as_norm(value)
    elif key in grid.TRAINING:
        TrainingConfig(**{key: value})
    elif key == "widths":
        items = cast(list[object], value) if isinstance(value, list) else [None]
        if not all(type(n) is int and 1 <= n < 2**31 for n in items):
            raise InvalidArgument(key, "be a list of whole numbers of at least 1", items)
    elif key == "activation":
        activation(checks.instance(value, str, key, "be the name of an activation"))
    elif key == "bias":
        checks.flag(value, key)
    elif key == "gain":
        checks.real(checks.number(value, key, "be a number above 0"), key, above=True)
    else:
        words = get_args(Start if key == "start" else Padding)
        if value not in words:
            raise UnknownName(key, str(value), words)


def _data(value: object, base: Path) -> None:
    name = checks.instance(value, str, "data", "be the name of a dataset, or a folder").removesuffix(VALIDATION)
    if name not in DATASET_NAMES and not (base / name).expanduser().is_dir():
        raise UnknownName("dataset", name, [*DATASET_NAMES, "or a folder of IDX or CIFAR-10 files"])


def _arch(value: object, base: Path) -> None:
    arch = checks.instance(value, str, "arch", f"be {DENSE}, {', '.join(CONVOLUTIONAL)} or {FACTORY}")
    if is_factory(arch):
        _file(arch.rpartition(":")[0], base, "arch")


def _file(text: str, base: Path, key: str) -> None:
    if not (base / text).expanduser().exists():
        raise InvalidArgument(key, f"name a file that exists; {(base / text).expanduser()} does not", text)


def _model(place: Place, table: ModelTable, faults: Faults, base: Path) -> None:
    if is_hub(table.path):
        faults.checked((*place, "path"), table.path, lambda: HubModel.parse(table.path))
    else:
        file, colon, _ = table.path.rpartition(":")
        source = bool(colon) and file.lower().endswith(".py")
        faults.checked((*place, "path"), table.path, lambda: _file(file if source else table.path, base, "path"))
        if not source and (table.weights is not None or table.classes is not None):
            key = "weights" if table.weights is not None else "classes"
            faults.add((*place, key), "should come with FILE.py:NAME as path")
    if table.weights is not None:
        faults.checked((*place, "weights"), table.weights, lambda: _file(table.weights or "", base, "weights"))
    if table.data is not None:
        faults.checked((*place, "data"), table.data, lambda: _data(table.data, base))


def _options(place: Place, info: VerifierInfo, options: Mapping[str, Any], faults: Faults) -> None:
    for key, value in options.items():
        faults.checked((*place, key), value, partial(read_options, info.name, info.options, {key: value}))


__all__ = ["check_table", "check_together", "check_value"]
