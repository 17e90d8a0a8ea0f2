"""Every operation, in the order in which several of one request are done."""

from .attention_heads import AttentionHeads
from .depth import Depth
from .expert_pruning import ExpertPruning
from .experts import Experts
from .kv_heads import KeyValueHeads
from .latent import Latent
from .mlp_width import MlpWidth
from .model_width import ModelWidth

OPERATIONS = (
    ModelWidth(),
    AttentionHeads(),
    KeyValueHeads(),
    Latent(),
    Experts(),
    ExpertPruning(),
    MlpWidth(),
    Depth(),
)
