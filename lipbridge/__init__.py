"""lipbridge: train networks whose Lipschitz bound you can read off, prove the bound, compare every verifier on it.

The public names stand once, in ``__init__.pyi``. Each is imported when it is first used, so that ``import lipbridge``
and the command line's help do not wait for torch.
"""

# lazy_loader has no type stubs; __init__.pyi tells type checkers everything.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
import lazy_loader

from lipbridge.version import __version__ as __version__

_stub, _, _public = lazy_loader.attach_stub(__name__, __file__)
#: Public functions of the bridge to other tools: entry points of the group ``lipbridge.functions``.
_BRIDGE = ("export_mat", "export_onnx", "read_mat", "read_onnx")
__all__: list[str] = sorted([*_public, *_BRIDGE])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _BRIDGE:
        return _stub(name)
    from importlib.metadata import entry_points

    (point,) = entry_points(group="lipbridge.functions", name=name)
    return globals().setdefault(name, point.load())


def __dir__() -> list[str]:
    return __all__
