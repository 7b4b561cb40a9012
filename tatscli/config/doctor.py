"""Looking at the machine."""

from pathlib import Path

from tatscli.config.base import Config


class DoctorConfig(Config):
    """What is looked at."""

    out: Path = Path("runs")
    """Folder that runs are to be written in."""
