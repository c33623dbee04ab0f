"""`python -m edgeproxy`: the same as the `edgeproxy` command."""

from edgeproxy.cli import main

if __name__ == "__main__":
    main()
