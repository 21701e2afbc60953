"""``python -m zoo.commands COMMAND``: as the console command, for processes that have no console script."""

from zoo.commands import main

if __name__ == "__main__":
    main()
