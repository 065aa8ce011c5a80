# ruff: noqa: I001  (one line a module: the stub is parsed at every start)
import typing

from . import plot as plot
from .activations.activation import Activation as Activation
from .activations.registry import (
    activation as activation,
    activation_module as activation_module,
    activation_names as activation_names,
)
from .auditing.audit import audit as audit
from .auditing.rows import AuditRow as AuditRow
from .constants.trivial import trivial_bound as trivial_bound
from .data import Dataset as Dataset, load_dataset as load_dataset
from .errors import (
    ClusterError as ClusterError,
    DataError as DataError,
    FileNotWritten as FileNotWritten,
    FolderInUse as FolderInUse,
    InvalidArgument as InvalidArgument,
    LipbridgeError as LipbridgeError,
    MissingDependency as MissingDependency,
    ModelFileError as ModelFileError,
    NothingToDraw as NothingToDraw,
    NumericalFailure as NumericalFailure,
    StudyFileError as StudyFileError,
    TrainingError as TrainingError,
    UnknownName as UnknownName,
    UnsupportedOperation as UnsupportedOperation,
    UnsupportedProblem as UnsupportedProblem,
)
from .files.frames import read_rows as read_rows
from .files.graphs import load_graph as load_graph, save_graph as save_graph
from .files.modules import load as load, save as save
from .files.run_folder import load_weights as load_weights
from .frontend.capture import capture as capture, check_capture as check_capture
from .graph.graph import Graph as Graph
from .layers.layers import (
    GroupSort as GroupSort,
    MaxMin as MaxMin,
    Sinusoidal as Sinusoidal,
    SinusoidalConv1d as SinusoidalConv1d,
    SinusoidalConv2d as SinusoidalConv2d,
    mlp as mlp,
)
from .lipsdp.solve.batch import lipsdp_bounds as lipsdp_bounds
from .norms import operator_norm as operator_norm
from .problem.bound import Bound as Bound, Witness as Witness
from .problem.problem import Problem as Problem
from .problem.property import (
    Case as Case,
    Judgement as Judgement,
    Property as Property,
    Verdict as Verdict,
    robust as robust,
)
from .problem.question import Ball as Ball, Question as Question
from .rigor.matrix import proved_operator_norm as proved_operator_norm
from .robustness.radii import certified_accuracy as certified_accuracy, certified_radii as certified_radii
from .search import search_lower_bound as search_lower_bound, witness_value as witness_value
from .study.comparison import compare as compare
from .study.config import StudyFile as StudyFile, read_study as read_study
from .study.plan import Plan as Plan, make_plan as make_plan
from .study.points import Points as Points
from .study.rows import Row as Row
from .study.study import run_study as run_study
from .training.config import TrainingConfig as TrainingConfig, TrainingResult as TrainingResult
from .training.fit import fit as fit
from .training.penalty import TrivialBoundPenalty as TrivialBoundPenalty
from .training.rescaling import RescaleResult as RescaleResult, rescale as rescale
from .verifiers import (
    Budget as Budget,
    Option as Option,
    Refusal as Refusal,
    Task as Task,
    Verifier as Verifier,
    get_verifier as get_verifier,
    list_verifiers as list_verifiers,
    read_options as read_options,
)
from .verifiers.properties import judge as judge
from .version import __version__ as __version__
from .vocabulary import Quantity as Quantity, Side as Side, Status as Status

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
