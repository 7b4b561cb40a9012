"""``tats doctor``: what is wrong with this machine."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from tatscli.cli import console
from tatscli.cli.options import Json, configured
from tatscli.config.doctor import DoctorConfig
from tatscli.config.words import counted

if TYPE_CHECKING:
    from tatscli.app.doctor import Finding

app = typer.Typer()

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


@app.command(epilog="Example: tats doctor --out runs")
@configured()
def doctor(config: DoctorConfig, json: Json = False) -> None:
    """Look for what is wrong with this machine, before a run finds out.

    Imports, writes, reads and computes for real: packages, GPUs, codecs, processes that read clips,
    shared memory, disks, weight files, torchrun and SLURM. Each line is ok, a warning (works, but
    not well) or an error (some command will fail), with what mends it. The exit code is 1 if
    anything is an error.
    """
    from tatscli.app.doctor import diagnose, require_sound

    found = diagnose(config, console.Terminal())
    if json:
        console.rows(found, as_json=True)
    else:
        _show(found)
    require_sound(found)


def _show(found: "Sequence[Finding]") -> None:
    console.findings(
        (finding.level, _STYLES[finding.level], finding.check, finding.text, finding.fix)
        for finding in found
    )
    count = Counter(finding.level for finding in found)
    console.note(
        f"{count['ok']} ok, {counted(count['warning'], 'warning')}, "
        f"{counted(count['error'], 'error')}"
    )
