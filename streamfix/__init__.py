"""streamfix: faces in video, restored without flicker."""

__version__ = "0.1.0"
