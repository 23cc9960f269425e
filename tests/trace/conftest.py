"""Make the helpers of the test folder importable when only these tests run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
