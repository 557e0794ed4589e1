"""Crop in, better crop out: pure and batchable."""
