"""IQuest-Coder 40B (IQuest 2025): Llama under another name."""

from .llama import FAMILY  # noqa: F401
