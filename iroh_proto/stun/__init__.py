"""STUN binding requests (RFC 8489), which tell what address the world sees."""
