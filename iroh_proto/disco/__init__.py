"""Disco: sealed pings between nodes that find and prove direct paths."""
