"""A small client of the kubelet's interface to containerd, CRI version 1, over a node's real socket."""

from __future__ import annotations

from .client import Cri, CriError
from .pod import Container, Pod

__all__ = ["Container", "Cri", "CriError", "Pod"]
