"""Where things are in a clone."""

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parents[1]
# The trained model that comes with the project, and real public config files.
STORIES = ROOT / "examples" / "stories260K"
CONFIGS = SUPPORT / "data" / "configs"
