"""Every subcommand of `esolm`, one module each."""
