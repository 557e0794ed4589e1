"""Live restoration over the network: a page for the browser, WHIP in, WHEP out.

A frame's way: peer or input -> scheduler (latest frame wins) -> engine (look, finish) -> encoder -> every viewer. aiortc and
aiohttp stay in this package.
"""
