"""The exceptions of :mod:`iroh_proto`.

Three kinds of trouble are kept apart, because their remedies differ: text or bytes that do not
decode (:class:`DecodeError`), a caller that breaks a machine's rules
(:class:`LocalProtocolError`), and a peer that breaks the protocol
(:class:`RemoteProtocolError`). Bytes from a peer never raise out of a machine: the third kind
travels inside a final event.
"""

from __future__ import annotations


class DecodeError(ValueError):
    """Text or bytes that are not what they should be; the message names what was wrong."""


class ProtocolError(Exception):
    """Base of the errors that concern the conduct of a protocol."""


class LocalProtocolError(ProtocolError):
    """The caller of a machine broke its rules. The machine has not changed."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol. Carried by events, never raised out of a machine."""
