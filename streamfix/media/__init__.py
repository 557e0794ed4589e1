"""Where frames come from and go to."""

from streamfix.media.base import Sink, Source
from streamfix.media.sink import open_sink
from streamfix.media.source import find_media, open_source

__all__ = ["Sink", "Source", "find_media", "open_sink", "open_source"]
