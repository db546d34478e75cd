"""`python -m lepton_jit`: the command line without an installed script."""

from __future__ import annotations

import sys

from lepton_jit.cli import main

if __name__ == "__main__":
    sys.exit(main())
