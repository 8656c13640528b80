"""``python -m iroh_anyio``: the command line."""

from iroh_anyio.cli import main

if __name__ == "__main__":
    main()
