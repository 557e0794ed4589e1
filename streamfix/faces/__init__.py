"""Who is in the frame, and where: detection, alignment, tracking, smoothing, scene cuts, selection."""

from __future__ import annotations

from streamfix.faces.cuts import CutDetector
from streamfix.faces.follower import Detected, follow

__all__ = ["CutDetector", "Detected", "follow"]
