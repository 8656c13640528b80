"""Tools for testing machines and the programs that embed them."""
