"""A server that annotates what is uploaded to it, as JSON over HTTP and in the CSV; and where people correct rows."""

import argparse
from pathlib import Path

from vec_pipeline.commands import CONFIG_HELP, path
from vec_pipeline.record import UserError, beside

INSTALL = "pip install 'vec-pipeline[serve]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=path, default=Path("config.yaml"), metavar="FILE", help=CONFIG_HELP)
    parser.add_argument("--csv", type=path, metavar="FILE", help="where rows go (default: `output` in the config)")
    parser.add_argument("--ephemeral", action="store_true", help="save nothing: pictures and rows end with the server")
    parser.add_argument(
        "--review-only", action="store_true", help="no models: only the page where people correct the rows of the CSV"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=port, default=8000, help="(default: %(default)s; 0: any that is free)")
    parser.add_argument("--new-token", action="store_true", help="make the token that requests need, and print it")
    parser.add_argument(
        "--most-waiting", type=positive, default=256, metavar="N", help="uploads that may wait: then 429"
    )
    parser.add_argument("--max-upload-mb", type=positive, default=50, metavar="MB", help="of one request: then 413")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set an option, e.g. describe.batch_size=4"
    )


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give 0 to 65535")
    return int(text)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def run(options: argparse.Namespace) -> int:
    if options.csv and options.ephemeral:
        raise UserError("--ephemeral saves nothing: leave --csv out")
    if options.review_only and options.ephemeral:
        raise UserError("--review-only saves corrections: leave --ephemeral out")
    from vec_pipeline.commands.serve.access import kept_hash, new_token
    from vec_pipeline.config import load_config

    output = options.csv or load_config(options.config, options.set).output
    token_path = beside(output, "token")
    if options.new_token:
        print(f"requests need this token from now on, which is shown this once: {new_token(token_path)}")
        return 0
    token_hash = kept_hash(token_path, options.host)
    try:
        from vec_pipeline.commands.serve.server import serve, serve_review
    except ImportError as error:
        raise UserError(f"serve needs {error.name}: {INSTALL}") from None
    try:
        if options.review_only:
            return serve_review(output, options, token_hash)
        return serve(load_config(options.config, options.set), options, token_hash)
    except UserError as error:  # of parts that are those of `run`, whose options it names
        said = str(error).replace("--output", "--csv").replace("use --refresh", "use `vec-pipeline run --refresh`")
        raise UserError(said) from None
