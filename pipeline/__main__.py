"""`python -m pipeline` is `esolm`."""

from pipeline.cli.main import main

main()
