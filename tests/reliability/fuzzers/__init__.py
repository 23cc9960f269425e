"""Seeded fuzzers of the public API, one module for each kind of input."""

import sys
from pathlib import Path

if (tests := str(Path(__file__).parents[2])) not in sys.path:  # a script knows its own folder only
    sys.path.append(tests)
