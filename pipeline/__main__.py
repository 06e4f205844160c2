"""`python -m pipeline`, in a checkout, is `esolm`."""

from esolm.pipeline.cli.main import main

main()
