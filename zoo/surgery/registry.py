"""Every operation, in the order in which several of one request are done."""

from .kv_heads import KeyValueHeads
from .latent import Latent

OPERATIONS = (KeyValueHeads(), Latent())
