"""`python -m ocapn`: the `ocapn` command where it is not installed."""

import sys

from ocapn.cli import main

sys.exit(main())
