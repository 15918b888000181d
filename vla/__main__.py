"""`python -m vla`, which torchrun starts on every rank."""

import sys

from vla.cli import main

sys.exit(main())
