"""python -m zoo_cli."""

from .start import start

if __name__ == "__main__":
    start()
