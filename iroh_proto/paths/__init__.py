"""Paths to a node: candidates, trust and choice."""
