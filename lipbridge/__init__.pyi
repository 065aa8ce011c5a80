from .activations import Activation as Activation
from .activations import activation as activation
from .activations import activation_module as activation_module
from .activations import activation_names as activation_names
from .bounds import Ball as Ball
from .bounds import Bound as Bound
from .bounds import Problem as Problem
from .bounds import Witness as Witness
from .bounds import trivial_bound as trivial_bound
from .capture import capture as capture
from .graph import Graph as Graph
from .layers import Sinusoidal as Sinusoidal
from .layers import mlp as mlp
from .norms import operator_norm as operator_norm
from .rigor import proved_operator_norm as proved_operator_norm
from .verifiers import Budget as Budget
from .verifiers import Verifier as Verifier
from .verifiers import get_verifier as get_verifier
from .verifiers import list_verifiers as list_verifiers

__version__: str
