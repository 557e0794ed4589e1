"""`python -m streamfix` is the command line."""

from streamfix.cli import main

if __name__ == "__main__":
    main()
