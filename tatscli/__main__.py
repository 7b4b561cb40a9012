"""``python -m tatscli`` is ``tats``."""

from tatscli.cli.main import main

if __name__ == "__main__":
    main()
