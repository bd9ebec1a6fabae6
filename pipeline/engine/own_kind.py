"""`python -m pipeline.engine.own_kind`: the kind of this machine, by the params.yaml of the current folder, as JSON.

It is a process of its own: torch holds memory for as long as it is loaded.
"""

import json
from pathlib import Path

from pipeline.params import load_params
from pipeline.unet.kind import describe_kind
from pipeline.unet.runtime import start_runtime

if __name__ == "__main__":
    print(json.dumps(describe_kind(start_runtime(load_params(Path("params.yaml")).runtime))))
