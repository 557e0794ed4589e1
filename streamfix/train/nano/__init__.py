"""The nano family: InterLCM's networks at a size that a laptop trains from nothing, in the layout of a release."""
