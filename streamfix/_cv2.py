"""The one place where OpenCV is imported: `from streamfix._cv2 import cv2`."""

from __future__ import annotations

from streamfix.errors import DependencyError

try:
    import cv2
except ImportError as error:
    # the wheel of opencv-python links system libraries that desktop images carry and slim servers and containers lack
    raise DependencyError(
        f"OpenCV cannot be loaded ({error}); install the system packages libgl1 and libglib2.0-0, "
        "and reinstall opencv-python if that does not mend it"
    ) from error

__all__ = ["cv2"]
