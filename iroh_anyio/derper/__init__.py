"""The DERP server."""
