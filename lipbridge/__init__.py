"""lipbridge: train networks whose Lipschitz bound you can read off, prove the bound, compare every verifier on it.

The public names stand once, in ``__init__.pyi``. Each is imported when it is first used, so that ``import lipbridge``
and the command line's help do not wait for torch.
"""

# lazy_loader has no type stubs; __init__.pyi tells type checkers everything.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
import lazy_loader

from lipbridge.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
