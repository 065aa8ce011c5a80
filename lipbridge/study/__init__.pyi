from .comparison import compare as compare
from .engine.alone import run_request as run_request
from .points import Points as Points
from .requests import Outcome as Outcome
from .requests import Request as Request
from .rows import Row as Row
