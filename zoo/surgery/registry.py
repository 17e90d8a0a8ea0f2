"""Every operation, in the order in which several of one request are done."""

from .latent import Latent

OPERATIONS = (Latent(),)
