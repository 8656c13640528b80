"""TLS identities of iroh nodes: libp2p-style certificates and raw public keys."""
