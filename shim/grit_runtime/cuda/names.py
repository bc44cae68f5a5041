"""States and result codes of the CUDA driver API by their names in cuda.h (12.8 to 13.5)."""

from __future__ import annotations

from typing import Final

# CUprocessState
RUNNING: Final = 0
LOCKED: Final = 1
CHECKPOINTED: Final = 2
FAILED: Final = 3
CHECKPOINTING: Final = 4  # since 13.5: on its way, ask again
RESTORING: Final = 5  # since 13.5
STATES: Final = ("RUNNING", "LOCKED", "CHECKPOINTED", "FAILED", "CHECKPOINTING", "RESTORING")

# CUresult: those that the checkpoint functions and cuInit answer
SUCCESS: Final = 0
INVALID_VALUE: Final = 1
OUT_OF_MEMORY: Final = 2
NOT_INITIALIZED: Final = 3  # of a process: it never made a CUDA context
NO_DEVICE: Final = 100
OPERATING_SYSTEM: Final = 304
ILLEGAL_STATE: Final = 401
NOT_READY: Final = 600  # lock: the time given was not enough, the process runs on
NOT_SUPPORTED: Final = 801
UNKNOWN: Final = 999
# Not CUDA's: no answer came from the helper in time.
NO_ANSWER: Final = -1

RESULTS: Final[dict[int, str]] = {
    0: "CUDA_SUCCESS",
    1: "CUDA_ERROR_INVALID_VALUE",
    2: "CUDA_ERROR_OUT_OF_MEMORY",
    3: "CUDA_ERROR_NOT_INITIALIZED",
    4: "CUDA_ERROR_DEINITIALIZED",
    34: "CUDA_ERROR_STUB_LIBRARY",
    36: "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER",
    46: "CUDA_ERROR_DEVICE_UNAVAILABLE",
    100: "CUDA_ERROR_NO_DEVICE",
    101: "CUDA_ERROR_INVALID_DEVICE",
    201: "CUDA_ERROR_INVALID_CONTEXT",
    304: "CUDA_ERROR_OPERATING_SYSTEM",
    400: "CUDA_ERROR_INVALID_HANDLE",
    401: "CUDA_ERROR_ILLEGAL_STATE",
    500: "CUDA_ERROR_NOT_FOUND",
    600: "CUDA_ERROR_NOT_READY",
    700: "CUDA_ERROR_ILLEGAL_ADDRESS",
    719: "CUDA_ERROR_LAUNCH_FAILED",
    800: "CUDA_ERROR_NOT_PERMITTED",
    801: "CUDA_ERROR_NOT_SUPPORTED",
    802: "CUDA_ERROR_SYSTEM_NOT_READY",
    803: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    909: "CUDA_ERROR_TIMEOUT",
    999: "CUDA_ERROR_UNKNOWN",
    NO_ANSWER: "no answer in time",
}

# cuGetErrorString's texts, which the `cuda-checkpoint` binary prints in place of a number.
TEXTS: Final[dict[str, int]] = {
    "invalid argument": INVALID_VALUE,
    "out of memory": OUT_OF_MEMORY,
    "initialization error": NOT_INITIALIZED,
    "no CUDA-capable device is detected": NO_DEVICE,
    "OS call failed or operation not supported on this OS": OPERATING_SYSTEM,
    "the operation cannot be performed in the present state": ILLEGAL_STATE,
    "device not ready": NOT_READY,
    "operation not supported": NOT_SUPPORTED,
}


def state_name(state: int) -> str:
    return STATES[state] if 0 <= state < len(STATES) else f"state {state}"


def result_name(result: int) -> str:
    return RESULTS.get(result, f"CUresult {result}")


def state_number(text: str) -> int | None:
    """The state that `cuda-checkpoint --get-state` prints (`running`, `locked`, ...); None for any other text."""
    word = text.strip().upper()
    return STATES.index(word) if word in STATES else None
