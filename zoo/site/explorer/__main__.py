"""python -m zoo.site.explorer OUT: writes the explorer into a folder."""

import sys
from pathlib import Path

from . import write


def main() -> None:
    """Ends in a sentence where OUT is missing or no folder."""
    if len(sys.argv) != 2:
        sys.exit("Say where to: python -m zoo.site.explorer OUT")
    out = Path(sys.argv[1])
    if out.exists() and not out.is_dir():
        sys.exit(f"{out} is a file: name a folder.")
    write(out)
    print(f"Open {out / 'index.html'} in a browser.")


if __name__ == "__main__":
    main()
