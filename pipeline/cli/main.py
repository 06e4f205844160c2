"""The `esolm` command."""

import atexit
import errno
import gc
import os
import sys
import warnings
from typing import Annotated

import typer

from esolm.data_prep.errors import EsolmError
from esolm.pipeline.cli.checkpoint import app as checkpoint_app
from esolm.pipeline.cli.evaluate import evaluate_command
from esolm.pipeline.cli.export import export_command
from esolm.pipeline.cli.generate import generate_command
from esolm.pipeline.cli.import_checkpoint import import_command
from esolm.pipeline.cli.plan import plan_command
from esolm.pipeline.cli.prep import app as prep_app
from esolm.pipeline.cli.replay import replay_command
from esolm.pipeline.cli.sample import sample_command
from esolm.pipeline.cli.serve import serve_command
from esolm.pipeline.cli.status import status_command
from esolm.pipeline.cli.submit import cancel_command, submit_command
from esolm.pipeline.cli.train import train_command
from esolm.pipeline.errors import EXIT_FAILED

app = typer.Typer(
    help="Pretrain Eso-LMs: text to token tars, training under any layout, export, decoding.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(prep_app, name="prep")
app.command("plan")(plan_command)
app.command("train")(train_command)
app.command("status")(status_command)
app.add_typer(checkpoint_app, name="checkpoint")
app.command("replay")(replay_command)
app.command("sample")(sample_command)
app.command("evaluate")(evaluate_command)
app.command("export")(export_command)
app.command("import")(import_command)
app.command("generate")(generate_command)
app.command("serve")(serve_command)
app.command("submit")(submit_command)
app.command("cancel")(cancel_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        from esolm.pipeline.run.directory import git_revision

        versions = [f"{name} {metadata.version(name)}" for name in ("torch", "deepspeed")]
        typer.echo(f"esolm {metadata.version('esolm')} ({git_revision()}), {', '.join(versions)}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print versions and exit.", callback=_print_version,
                     is_eager=True),
    ] = False,
) -> None:  # fmt: skip
    """Options of `esolm` itself; its help stands at `app`."""


FREE_SPACE = "Free some space there and run the same command again."
MEND_RIGHTS = "Mend the rights there, or name another place, and run the same command again."
MEND_DISK = "The disk or the connection to it has a fault; what was whole there still is."
OF_THE_MACHINE = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EACCES: MEND_RIGHTS,
    errno.EPERM: MEND_RIGHTS,
    errno.EROFS: MEND_RIGHTS,
    errno.EIO: MEND_DISK,
    errno.ESTALE: MEND_DISK,
    errno.EISDIR: "A folder lies where a file should be: move it away.",
    errno.ENOTDIR: "A file lies where a folder should be: move it away, or name another place.",
}
"""What is no fault of this program, wherever it comes up, and what to do about it."""

# New objects until Python looks for garbage; its own number is 700.
OBJECTS_OF_AN_IMPORT = 50_000


def main() -> None:
    """Runs the command; an error that a user can cause ends in one message and its exit code."""
    # Ranks and workers, too, take no code from the working directory (see `esolm/__main__.py`).
    os.environ["PYTHONSAFEPATH"] = "1"
    # Modules are no garbage, and there are many: looking for it was two fifths of a short command.
    # Training goes back to Python's own pace once it has all that it needs.
    gc.set_threshold(OBJECTS_OF_AN_IMPORT, 10, 10)
    atexit.register(gc.freeze)
    if not sys.warnoptions:  # what libraries say of each other helps no user of ours
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("default", module=r"esolm\.")
    try:
        app(prog_name="esolm")
    except EsolmError as error:
        if not error.told:
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        name = error.filename2 or error.filename  # of a rename, what was to be written
        where = f"{name}: " if name else ""
        print(f"error: {where}{error.strerror}. {OF_THE_MACHINE[error.errno]}", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
