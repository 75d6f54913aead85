"""`python -m claimscope` is the command line."""

from claimscope.cli import main

if __name__ == "__main__":
    main()
