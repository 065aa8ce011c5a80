"""The comparative study: one cell a process, rows that judge each other, the machine they ran on, and the report.

Names are imported when they are first used (see ``__init__.pyi``): the command line reads some light parts of it.
"""

# lazy_loader has no type stubs; __init__.pyi tells type checkers everything.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
