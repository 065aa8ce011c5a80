from .cells import Cell as Cell
from .cells import Outcome as Outcome
from .cells import run_cell as run_cell
from .comparison import Points as Points
from .comparison import compare as compare
from .rows import Row as Row
