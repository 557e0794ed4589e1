"""streamfix: faces in video, restored without flicker.

    import streamfix

    streamfix.enhance("in.mp4", "out.mp4", model="lite")

The names below are loaded on first use, so that importing the package stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamfix.jobs import enhance
    from streamfix.pipeline import Pipeline, Report, load_pipeline
    from streamfix.restore.base import load_restorer

__version__ = "0.1.0"
__all__ = ["Pipeline", "Report", "__version__", "enhance", "load_pipeline", "load_restorer"]

_HOMES = {
    "Pipeline": "streamfix.pipeline",
    "Report": "streamfix.pipeline",
    "enhance": "streamfix.jobs",
    "load_pipeline": "streamfix.pipeline",
    "load_restorer": "streamfix.restore.base",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # so that shells complete what is not loaded yet
