"""One rank of several trainings, one after the other: `several_runs.py "[[RUN, key=value...]...]"`.

Starting a process costs more than these trainings do.
"""

import os
import sys

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.config import load_config
from esolm.pipeline.train.run import train

if __name__ == "__main__":
    first_port = int(os.environ["MASTER_PORT"])
    for number, (path, *overrides) in enumerate(eval(sys.argv[1])):
        os.environ["MASTER_PORT"] = str(first_port + number)
        try:
            print("ended with", train(load_config(path, overrides)))
        except ConfigError as error:
            print(f"refused: {error}")
