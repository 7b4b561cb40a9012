"""Token datasets: checking and merging."""

from pathlib import Path

from pydantic import Field

from tatscli.config.base import Config


class VerifyOptions(Config):
    """Checking."""

    repair: bool = False
    """Drop what is damaged, so that the command that wrote the dataset writes it again."""


class VerifyConfig(Config):
    """Everything that checking needs."""

    verify: VerifyOptions = Field(default_factory=VerifyOptions)


class MergeOptions(Config):
    """Merging."""

    out: Path
    """Folder of the merged token dataset; an unfinished one is continued."""


class MergeConfig(Config):
    """Everything that merging needs."""

    merge: MergeOptions
