"""Every operation, in the order in which several of one request are done."""

from .experts import Experts
from .kv_heads import KeyValueHeads
from .latent import Latent

OPERATIONS = (KeyValueHeads(), Latent(), Experts())
