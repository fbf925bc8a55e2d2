"""`python -m hailo_agent`: the console script for whoever has no scripts directory on PATH."""

import sys

from hailo_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
