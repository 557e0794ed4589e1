"""The layouts of a picture of an aligned face, told apart by its size, for what writes such pictures and what reads them."""

from __future__ import annotations

LAYOUTS = {512: (1.0, 0), 640: (1.0, 64), 400: (320 / 512, 40)}
"""Side of the picture -> (scale of the FFHQ template in it, margin around the template in the picture's pixels)."""
