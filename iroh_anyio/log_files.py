"""What an endpoint writes for people who look into it: qlog files, TLS secrets, a time line."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import IO, Self, TypeAlias

from aioquic.quic.logger import QuicFileLogger, QuicLoggerTrace

from iroh_anyio.quic.options import EndpointOptions
from iroh_anyio.trace_file import TraceFile, open_private

PathText: TypeAlias = str | os.PathLike[str]


class LogFiles:
    """The files of one endpoint, open until :meth:`close`."""

    def __init__(
        self, qlog: _QlogFolder | None, keylog: IO[str] | None, trace: TraceFile | None
    ) -> None:
        self.trace = trace
        self._qlog = qlog
        self._keylog = keylog

    @classmethod
    def open(
        cls,
        qlog_dir: PathText | None,
        keylog_file: PathText | None,
        trace_file: PathText | None = None,
    ) -> Self:
        """Open what was asked for, by argument or by the environment's ``SSLKEYLOGFILE``.

        :raises OSError: if a file cannot be opened, or the folder does not exist.
        """
        qlog = None
        if qlog_dir is not None:
            if not os.path.isdir(qlog_dir):
                raise NotADirectoryError(f"there is no folder {os.fspath(qlog_dir)} for qlog files")
            qlog = _QlogFolder(os.fspath(qlog_dir))
        keylog_file = keylog_file or os.environ.get("SSLKEYLOGFILE")
        keylog: IO[str] | None = None
        if keylog_file:
            keylog = open_private(keylog_file, os.O_APPEND)
        try:
            trace = None if trace_file is None else TraceFile(trace_file)
        except OSError:
            if keylog is not None:
                keylog.close()
            raise
        return cls(qlog, keylog, trace)

    def apply(self, options: EndpointOptions) -> EndpointOptions:
        """Return the options with these files in place of their own."""
        if self._qlog is not None:
            options = replace(options, qlog=self._qlog)
        if self._keylog is not None:
            options = replace(options, keylog=self._keylog)
        return options

    def close(self) -> None:
        """Write what is not yet written, and close the files. Idempotent."""
        if self._qlog is not None:
            self._qlog.end_all()
        if self._keylog is not None:
            self._keylog.close()
        if self.trace is not None:
            self.trace.close()


class _QlogFolder(QuicFileLogger):
    """Writes a file when a connection is gone, or with :meth:`end_all`."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._open: dict[QuicLoggerTrace, None] = {}

    def start_trace(self, is_client: bool, odcid: bytes) -> QuicLoggerTrace:
        trace = super().start_trace(is_client, odcid)
        self._open[trace] = None
        return trace

    def end_trace(self, trace: QuicLoggerTrace) -> None:
        if trace in self._open:
            del self._open[trace]
            super().end_trace(trace)

    def end_all(self) -> None:
        for trace in list(self._open):
            self.end_trace(trace)
