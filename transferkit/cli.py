"""The command line: a thin face of the library. It answers ``--help`` without importing torch."""

from __future__ import annotations

import argparse
import io
import pkgutil
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transferkit import __version__
from transferkit.errors import TransferkitError
from transferkit.files import write_stdout
from transferkit.loading.cache import KINDS

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_DATA = "a folder or zip archive of images, a CSV table, or the name of a data set"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(
        prog="transferkit", description="Adapt a pretrained vision model to your own images."
    )
    parser.add_argument("--version", action="version", version=f"transferkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_quickstart(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    for name, what in (
        ("backbones", "the backbones that load_backbone knows"),
        ("datasets", "the data sets that load_dataset knows by name"),
        ("augmentations", "the augmentation presets"),
        ("recipes", "the recipes of training"),
    ):
        listing = _add_command(commands, name, f"list {what}")
        if name == "backbones":
            listing.add_argument("pattern", nargs="?", default="*", help="a glob, such as 'resnet*'")
        _add_output(listing)
    _add_probe(commands)
    _add_cache(commands)
    return parser


def _add_command(commands: _Commands, name: str, what: str, **more: Any) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", **more)


# What several commands take. Texts are given where the meaning differs.


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress on standard error")


def _add_data(
    parser: argparse.ArgumentParser,
    label_from: str = r"takes the label from the file name, such as '^(\w+)\.'",
) -> None:
    add = parser.add_argument
    add("data", metavar="DATA", help=_DATA)
    add("--label-from", metavar="REGEX", help=label_from)
    add(
        "--delimiter",
        metavar="C",
        help="what separates the columns of a table: a character, tab, or auto to find out (by its suffix)",
    )


def _add_draws(parser: argparse.ArgumentParser, *, val: str, shots: str, seed: str) -> None:
    add = parser.add_argument
    add("--val", type=float, default=0.2, metavar="X", help=f"{val} (0.2)")
    add("--subset", type=float, metavar="X", help="use this share of every part")
    add("--shots", type=int, metavar="N", help=f"{shots} this many images of each class")
    add("--seed", type=int, default=0, metavar="N", help=f"of {seed} (0)")


def _add_weights(parser: argparse.ArgumentParser, whose: str = "") -> None:
    add = parser.add_argument
    forms = "default, none, a name, or a .safetensors or .pth file"
    add("--weights", default="default", metavar="W", help=f"{whose}{forms}")
    add("--image-size", type=int, metavar="N", help="side of the images in pixels (that of the weights)")


def _add_on_error(parser: argparse.ArgumentParser, skip: str = "be left out") -> None:
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help=f"what an image that cannot be decoded does: end the command, or {skip} (raise)",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1 …")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, metavar="N", help="decoding threads (one for each processor)")
    _add_device(parser)
    parser.add_argument("--precision", default="auto", metavar="P", help="auto, fp32, bf16 or fp16")


def _batch_size(text: str) -> int | str:
    """Return a number, or ``"auto"``."""
    return text if text == "auto" else int(text)


def _add_run_options(parser: argparse.ArgumentParser, *, trains: bool = False) -> None:
    parser.add_argument(
        "--batch-size",
        type=_batch_size if trains else int,
        default=64,
        metavar="N",
        help=f"images in a batch{', or auto: a power of two that fits' if trains else ''} (64)",
    )
    _add_machine(parser)
    parser.add_argument(
        "--compile",
        choices=("auto", "yes", "no"),
        default="auto",
        help=f"compile what does not train{', and on a GPU the training steps' if trains else ''} (auto)",
    )
    parser.add_argument(
        "--decode",
        choices=("fast", "exact"),
        default="fast",
        help="pixels near Pillow's, or Pillow's own (fast)",
    )
    _add_output(parser)


# The commands.


def _add_quickstart(commands: _Commands) -> None:
    what = "fine-tune the embedded backbone on 10 digits per class, beside random weights"
    parser = _add_command(commands, "quickstart", what)
    parser.add_argument("--out", default="quickstart-run", metavar="RUN", help="the run directory")
    _add_device(parser)
    _add_output(parser)


def _add_train(commands: _Commands) -> None:
    parser = _add_command(commands, "train", "adapt a backbone to your images")
    add = parser.add_argument
    _add_data(parser)
    add("--backbone", default="mini", metavar="NAME", help="see 'transferkit backbones' (mini)")
    _add_weights(parser)
    add(
        "--adapt-batch-norm",
        action=argparse.BooleanOptionalAction,
        default="auto",
        help="measure the statistics of batch norm on your images first (where they are foreign to them)",
    )
    add("--recipe", default="lp-ft", metavar="NAME", help="see 'transferkit recipes' (lp-ft)")
    add("--epochs", type=int, metavar="N", help="in all phases together (the recipe's own)")
    add("--augmentation", metavar="NAME", help="see 'transferkit augmentations' (the recipe's own)")
    add("--lr", type=float, metavar="X", help="learning rate of the backbone, or of a head that trains alone")
    add("--head-lr", type=float, metavar="X", help="learning rate of the head")
    add("--layer-decay", type=float, metavar="X", help="factor on the rate from each stage to the one before")
    add("--optimizer", metavar="NAME", help="sgd, adam or adamw (the recipe's own)")
    add(
        "--solver",
        metavar="NAME",
        help="lbfgs fits a linear head without epochs, sgd trains it (the recipe's)",
    )
    add(
        "--views",
        type=int,
        metavar="K",
        help="a head that trains alone sees K stored augmented views (1: plain)",
    )
    add(
        "--schedule",
        metavar="NAME",
        help="constant, step, cosine, one-cycle, cyclic or plateau (the recipe's)",
    )
    add("--ema", type=float, metavar="X", help="averages the weights over the steps, such as with 0.999 (0)")
    add("--mix", metavar="NAME", help="mixup or cutmix, where the backbone trains (none)")
    add("--sampling", metavar="NAME", help="balanced draws all classes equally often (shuffle)")
    add("--checkpoint-activations", action="store_true", help="less memory, about a quarter more time")
    _add_draws(
        parser,
        val="share kept for validation where there is no val part",
        shots="train on",
        seed="split, order, augmentation and new head",
    )
    add("--out", metavar="RUN", help="the run directory (runs/DATA-BACKBONE-NUMBER)")
    add("--resume", action="store_true", help="go on with the run in --out, from its newest checkpoint")
    add("--resume-from", metavar="CHECKPOINT", help="go on with the run in --out, from this checkpoint")
    add(
        "--checkpoint-seconds",
        type=float,
        default=120.0,
        metavar="X",
        help="time between two checkpoints; longer where writing takes more than 2%% of it (120)",
    )
    add("--checkpoint-steps", type=int, metavar="N", help="steps between two checkpoints (none)")
    add("--tensorboard", action="store_true", help="write the run for TensorBoard too, into RUN/tensorboard")
    _add_on_error(parser)
    _add_run_options(parser, trains=True)


def _add_evaluate(commands: _Commands) -> None:
    parser = _add_command(commands, "evaluate", "score a trained model on images")
    parser.add_argument("run", metavar="RUN", help="the run directory")
    _add_data(parser, "takes the label from the file name; '' takes the folders (that of the run)")
    parser.add_argument("--out", metavar="FILE", help="write the report as JSON")
    _add_on_error(parser)
    _add_run_options(parser)


def _add_predict(commands: _Commands) -> None:
    parser = _add_command(commands, "predict", "label images with a trained model")
    parser.add_argument("run", metavar="RUN", help="the run directory")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files or folders")
    parser.add_argument(
        "--out", metavar="FILE", help="a CSV file; without it, the table goes to standard output"
    )
    parser.add_argument("--grid", metavar="FILE", help="a picture of some of the images with their labels")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="labels for each image (1)")
    _add_on_error(parser, "get no label")
    _add_run_options(parser)


def _add_probe(commands: _Commands) -> None:
    parser = _add_command(commands, "probe", "compare backbones on your images, before any is trained")
    _add_data(parser)
    parser.add_argument(
        "--backbone",
        action="append",
        metavar="NAME[=W]",
        help="see 'transferkit backbones' (mini); with its own weights after '='; may be given again",
    )
    _add_weights(parser, "of backbones without their own: ")
    _add_draws(
        parser,
        val="share to score on where there is no val or test part",
        shots="fit to",
        seed="split, folds and random weights",
    )
    _add_on_error(parser)
    _add_machine(parser)
    _add_output(parser)


def _add_cache(commands: _Commands) -> None:
    parser = _add_command(
        commands,
        "cache",
        "show or clear what is kept on disk to be used again",
        epilog="TRANSFERKIT_CACHE names the folder (~/.cache/transferkit), and TRANSFERKIT_CACHE_SIZE how "
        "much it may hold, such as 20GB (10GB).",
    )
    parser.add_argument("action", nargs="?", choices=("show", "clear"), default="show", help="(show)")
    parser.add_argument("--kind", choices=KINDS, help="only these (all)")
    _add_output(parser)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"transferkit: warning: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or that of the error it met."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files need not be valid Unicode, nor be known to the terminal's encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    options = argparse.Namespace()
    try:
        options = _parse(arguments)
        from transferkit.commands import COMMANDS

        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            pkgutil.resolve_name(COMMANDS[options.command])(options)
    except TransferkitError as error:
        from transferkit.commands.wording import in_options

        print(f"transferkit: {in_options(str(error), options)}", file=sys.stderr)
        return error.exit_code
    except SystemExit as error:
        for note in getattr(error, "__notes__", ()):  # of SIGTERM
            print(f"transferkit: terminated. {note}".rstrip(), file=sys.stderr)
        raise
    except KeyboardInterrupt as error:
        print(f"transferkit: interrupted. {error}".rstrip(), file=sys.stderr)
        return 130
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    try:
        return build_parser().parse_args(arguments)
    except SystemExit:
        write_stdout("")  # --help leaves its text in the buffer
        raise


if __name__ == "__main__":
    sys.exit(main())
