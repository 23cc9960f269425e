"""The command line: thin over the public API, every command is a call that Python users can make too.

Exit codes: 0 all went well; 1 alignkit refused or failed, and the message says why; 2 the command line makes no sense;
3 an error that nobody expected (please report it); 130 interrupted.
"""

from __future__ import annotations

from alignkit.cli.program import app, main

__all__ = ["app", "main"]
