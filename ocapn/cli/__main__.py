"""`python -m ocapn.cli`."""

import sys

from ocapn.cli import main

sys.exit(main())
