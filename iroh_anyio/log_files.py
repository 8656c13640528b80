"""What an endpoint writes for people who look into it: qlog files, TLS secrets, a time line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Self, TypeAlias

from aioquic.quic.logger import QuicFileLogger, QuicLoggerTrace

from iroh_anyio.quic.options import EndpointOptions
from iroh_anyio.trace_file import TraceFile, open_private

logger = logging.getLogger("iroh_anyio.log_files")

PathText: TypeAlias = str | os.PathLike[str]


class LogFiles:
    """The files of one endpoint, open until :meth:`close`."""

    def __init__(
        self, qlog: _QlogFolder | None, keylog: _KeylogFile | None, trace: TraceFile | None
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
        keylog = _KeylogFile(keylog_file) if keylog_file else None
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


class _KeylogFile:
    """Takes TLS secrets as long as they can be written.

    What cannot be is a warning, since nobody's connections are to break because of it.
    """

    def __init__(self, path: PathText) -> None:
        self._file = open_private(path, os.O_APPEND)
        self._has_failed = False

    def write(self, text: str) -> int:
        """Take the next lines."""
        self._try(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        """Have them in the file."""
        self._try(self._file.flush)

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._try(self._file.close)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            if not self._has_failed:
                logger.warning("TLS secrets are not written: %s", error.strerror)
            self._has_failed = True


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
            try:
                super().end_trace(trace)
            except OSError as error:
                logger.warning("a qlog file is not written: %s", error)

    def end_all(self) -> None:
        for trace in list(self._open):
            self.end_trace(trace)
