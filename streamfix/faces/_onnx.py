"""One way to open an ONNX network on the CPU, and to say what is wrong with a file that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamfix.errors import DependencyError, ModelError
from streamfix.files import check_file


def open_session(model: Path | bytes, *, what: str, threads: int | None = None) -> Any:
    """An onnxruntime.InferenceSession on the CPU.

    model: a file, or its bytes. what: the thing it should be, for errors. threads: of the CPU, None for the runtime's
    default. Raises ModelError for a file that is not there or cannot be loaded, DependencyError without onnxruntime.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(f"onnxruntime cannot be loaded ({error}); install it again") from error
    if isinstance(model, Path):
        check_file(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # waiting threads that spin would take the cores from decoding and restoring: a fifth of the whole job, measured
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own exceptions share no base of their own
        if isinstance(model, bytes):
            raise ModelError(f"the embedded {what} does not load ({error}); install onnxruntime again") from error
        raise ModelError(f"{model} is no ONNX {what} that can be loaded ({type(error).__name__})") from error


def told(error: Exception) -> str:
    """What onnxruntime says, in one line."""
    return " ".join(str(error).split())
