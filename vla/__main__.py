"""`python -m vla`, which torchrun starts on every rank."""

import sys

from vla.commands.cli import main

sys.exit(main())
