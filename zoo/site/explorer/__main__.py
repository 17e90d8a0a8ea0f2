"""python -m zoo.site.explorer OUT: writes the explorer into a folder."""

import sys
from pathlib import Path

from . import write

if len(sys.argv) != 2:
    sys.exit("Say where to: python -m zoo.site.explorer OUT")
write(Path(sys.argv[1]))
print(f"Open {Path(sys.argv[1]) / 'index.html'} in a browser.")
