"""The text model of PaddleOCR-VL (Baidu 2025, arXiv 2510.14528): ERNIE 4.5, whose heads rotate in halves."""

from dataclasses import replace

from .ernie4_5 import FAMILY as ERNIE

FAMILY = replace(ERNIE, fixed={}, tiny=())
