import typing

from .activations.activation import Activation as Activation
from .activations.registry import activation as activation
from .activations.registry import activation_module as activation_module
from .activations.registry import activation_names as activation_names
from .constants.trivial import trivial_bound as trivial_bound
from .data import Dataset as Dataset
from .data import load_dataset as load_dataset
from .errors import DataError as DataError
from .errors import FileNotWritten as FileNotWritten
from .errors import FolderInUse as FolderInUse
from .errors import InvalidArgument as InvalidArgument
from .errors import LipbridgeError as LipbridgeError
from .errors import MissingDependency as MissingDependency
from .errors import ModelFileError as ModelFileError
from .errors import NumericalFailure as NumericalFailure
from .errors import TrainingError as TrainingError
from .errors import UnknownName as UnknownName
from .errors import UnsupportedOperation as UnsupportedOperation
from .errors import UnsupportedProblem as UnsupportedProblem
from .files.graphs import load_graph as load_graph
from .files.graphs import save_graph as save_graph
from .files.modules import load as load
from .files.modules import save as save
from .files.run_folder import load_weights as load_weights
from .frontend.capture import capture as capture
from .frontend.capture import check_capture as check_capture
from .graph.graph import Graph as Graph
from .layers.layers import GroupSort as GroupSort
from .layers.layers import MaxMin as MaxMin
from .layers.layers import Sinusoidal as Sinusoidal
from .layers.layers import SinusoidalConv1d as SinusoidalConv1d
from .layers.layers import SinusoidalConv2d as SinusoidalConv2d
from .layers.layers import mlp as mlp
from .lipsdp.solve.batch import lipsdp_bounds as lipsdp_bounds
from .norms import operator_norm as operator_norm
from .problem.bound import Bound as Bound
from .problem.bound import Witness as Witness
from .problem.problem import Problem as Problem
from .problem.question import Ball as Ball
from .problem.question import Question as Question
from .rigor.matrix import proved_operator_norm as proved_operator_norm
from .robustness.radii import certified_accuracy as certified_accuracy
from .robustness.radii import certified_radii as certified_radii
from .search import search_lower_bound as search_lower_bound
from .search import witness_value as witness_value
from .study.comparison import Points as Points
from .study.comparison import compare as compare
from .study.rows import Row as Row
from .training.config import TrainingConfig as TrainingConfig
from .training.config import TrainingResult as TrainingResult
from .training.fit import fit as fit
from .training.penalty import TrivialBoundPenalty as TrivialBoundPenalty
from .training.rescaling import RescaleResult as RescaleResult
from .training.rescaling import rescale as rescale
from .verifiers import Budget as Budget
from .verifiers import Option as Option
from .verifiers import Refusal as Refusal
from .verifiers import Task as Task
from .verifiers import Verifier as Verifier
from .verifiers import get_verifier as get_verifier
from .verifiers import list_verifiers as list_verifiers
from .verifiers import read_options as read_options
from .version import __version__ as __version__
from .vocabulary import Quantity as Quantity
from .vocabulary import Side as Side
from .vocabulary import Status as Status

# Entry points of the bridge: `lipbridge.read_onnx.__doc__` and the guide say what each takes.
def export_mat(network: Graph | typing.Any, path: typing.Any) -> typing.Any: ...
def export_onnx(
    network: Graph | typing.Any,
    path: typing.Any,
    dialect: str = "relu",
    *,
    check: bool = True,
    input_shape: typing.Any = None,
    merge: bool = False,
) -> typing.Any: ...
def read_mat(path: typing.Any, activation_name: str | Activation = "relu") -> Graph: ...
def read_onnx(path: typing.Any, input_shape: typing.Any = None, *, output: str | None = None) -> Graph: ...
