"""Tests against Debian's packages; `make test-system` installs them and runs these."""
