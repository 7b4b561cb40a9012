"""The fixtures of use cases."""

from tiny_fixtures import *  # noqa: F403  # fixtures are found by name
