"""Every operation, in the order in which several of one request are done."""

from .attention_heads import AttentionHeads
from .attention_span import AttentionSpan
from .context import Context
from .dense import Dense
from .depth import Depth
from .expert_pruning import ExpertPruning
from .experts import Experts
from .fitted_norms import QueryKeyNorm, SandwichNorm
from .head_width import HeadWidth
from .kv_heads import KeyValueHeads
from .latent import Latent
from .mlp_width import MlpWidth
from .model_width import ModelWidth
from .multipliers import Multipliers
from .no_rotation import NoRotation
from .norm_folding import NormFolding
from .norm_kind import NormKind
from .norm_offset import NormOffset
from .output_gate import OutputGate
from .recurrence import Recurrence
from .rotation_layout import RotationLayout
from .silent_recurrence import SilentRecurrence
from .sinks import Sinks
from .sparse_attention import SparseAttention
from .stream_rotation import StreamRotation
from .tied_head import UntiedHead
from .value_biases import ValueBiases
from .vocabulary_size import VocabularySize
from .zero_biases import ZeroBiases

OPERATIONS = (
    UntiedHead(),
    ZeroBiases(),
    NormKind(),
    NormOffset(),
    NormFolding(),
    ValueBiases(),
    StreamRotation(),
    Multipliers(),
    RotationLayout(),
    ModelWidth(),
    AttentionHeads(),
    KeyValueHeads(),
    HeadWidth(),
    QueryKeyNorm(),
    Latent(),
    SandwichNorm(),
    OutputGate(),
    Sinks(),
    Context(),
    VocabularySize(),
    Recurrence(),
    SilentRecurrence(),
    AttentionSpan(),
    SparseAttention(),
    NoRotation(),
    Dense(),
    MlpWidth(),
    Experts(),
    ExpertPruning(),
    Depth(),
)
