"""DERP: relaying between nodes that know only each other's id."""
