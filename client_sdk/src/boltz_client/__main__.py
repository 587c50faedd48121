"""`python -m boltz_client` is the `boltz-client` command."""

import sys

from boltz_client.cli import main

sys.exit(main())
