"""What tests need that not every user has."""

import os

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
