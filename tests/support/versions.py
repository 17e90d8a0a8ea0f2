"""Which transformers runs: older ones have mistakes that newer ones do not."""

import transformers
from packaging.version import Version


def older_than(version):
    return Version(transformers.__version__) < Version(version)
