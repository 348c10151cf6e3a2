"""`python -m tercet.server serve …`."""

from tercet.server.cli import main

if __name__ == "__main__":
    main()
