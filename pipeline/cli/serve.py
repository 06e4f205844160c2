"""`esolm serve`: a bundle behind an address."""

from pathlib import Path
from typing import Annotated

import typer

from esolm.pipeline.cli.decoding_options import DTYPE


def serve_command(
    bundle: Annotated[Path, typer.Argument(help="A directory written by esolm export.")],
    host: Annotated[
        str, typer.Option(help="Where to listen; 0.0.0.0 is every network of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    port_file: Annotated[
        Path | None, typer.Option(help="Where to write the port once requests are taken.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Texts that are written at a time.")] = 16,
    queue: Annotated[int, typer.Option(min=0, help="Texts that may wait for a row.")] = 64,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a text; by default those of training.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a request may take.")] = 300.0,
    dtype: Annotated[str | None, DTYPE] = None,
    name: Annotated[
        str | None, typer.Option(help="As clients see it; by default the folder's name.")
    ] = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="Processes that serve it, on a GPU each where there are any.")
    ] = 1,
) -> None:
    """Serve a bundle to OpenAI clients, curl and a browser, many requests in one batch.

    Needs the extra esolm[serve], several replicas esolm[ray] as well. With ESOLM_API_KEY set,
    clients must show that key. SIGTERM and Ctrl-C let running requests finish; a second one does
    not. docs/serving.md has the interface.

    Example:

        esolm serve bundles/demo --port 8000
    """
    from esolm.pipeline.errors import ConfigError

    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'esolm[serve]'") from None
    from esolm.pipeline.serve.server import Address, Served, serve
    from esolm.pipeline.serve.service import Limits

    served = Served(bundle, Limits(rows, queue, max_length, timeout), name, dtype)
    address = Address(host, port, port_file)
    if replicas == 1:
        serve(served, address)
        return
    from esolm.pipeline.serve.own_ray import prepare

    prepare()
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'esolm[ray]'") from None
    from esolm.pipeline.serve.front import serve_replicas

    serve_replicas(served, address, replicas)
