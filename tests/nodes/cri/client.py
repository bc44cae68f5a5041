"""Calls of CRI's RuntimeService: the method's name, a dict, and a dict back."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from .messages import METHODS
from .wire import Message, decode, encode

# grpc's own threads are left alone when the tests start programs
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc  # type: ignore[import-untyped] # noqa: E402

if TYPE_CHECKING:
    from tests.testbed import Node


class CriError(Exception):
    """A call that containerd refused. `code` is gRPC's name of it (NOT_FOUND, UNIMPLEMENTED, UNKNOWN ...)."""

    def __init__(self, method: str, code: str, message: str) -> None:
        super().__init__(f"{method}: {code}: {message}")
        self.code, self.message = code, message


class Cri:
    """containerd of one node, reached through its socket from outside the node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._channel: Any = None

    def call(self, method: str, wait: float = 60, /, **request: Any) -> Message:
        """`method` with the fields of its request. CriError if it fails or takes longer than `wait` seconds."""
        asked, answered = METHODS[method]
        if self._channel is None:
            self._channel = grpc.insecure_channel(f"unix:{self.node.path('/run/containerd/containerd.sock')}")
        call = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=lambda message: encode(asked, message),
            response_deserializer=lambda data: decode(answered, data),
        )
        end = time.monotonic() + wait
        while True:
            try:
                answer: Message = call(request, timeout=max(0.1, end - time.monotonic()), wait_for_ready=True)
                return answer
            except grpc.RpcError as error:
                # A containerd that has just been started listens before it is ready; a kubelet asks again then.
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > end:
                    raise CriError(method, error.code().name, error.details() or "") from None
            time.sleep(0.1)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
