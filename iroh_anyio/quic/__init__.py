"""QUIC between nodes: pure machines over aioquic."""
