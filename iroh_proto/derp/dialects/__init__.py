"""The generations of the DERP protocol, one module each behind one interface."""
