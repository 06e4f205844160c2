"""Makes the table of settings in docs/training.md from the fields; `make docs` runs this."""

import re
from pathlib import Path

from omegaconf import OmegaConf

from esolm.pipeline.run.sections import RunConfig, settings_of

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "training.md"
HEADER = "| key | default | meaning |\n|---|---|---|\n"


def settings_table() -> str:
    """Returns one row for each setting, in the order of the sections, as Markdown."""
    defaults = OmegaConf.structured(RunConfig)
    required = OmegaConf.missing_keys(defaults)
    rows = []
    for key, field in settings_of(RunConfig).items():
        default = "required"
        if key not in required:
            value = OmegaConf.select(defaults, key)
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            default = f"`{shown}`" if shown else "empty"
        rows.append(f"| `{key}` | {default} | {field.metadata['help']} |\n")
    return HEADER + "".join(rows)


def main() -> None:
    """Writes the table in place of the one that is there."""
    text = DOCUMENT.read_text()
    table = re.compile(re.escape(HEADER) + r"(?:\| `.*\n)+")
    DOCUMENT.write_text(table.sub(lambda _: settings_table(), text, count=1))


if __name__ == "__main__":
    main()
