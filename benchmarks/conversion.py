"""Time and memory of `clip convert` as a whole process, side by side with torch.load and torch.save of the same file.

    python benchmarks/conversion.py --model ViT-B/32

The peer reads and writes the weights in PyTorch's own format, without a digest, a comparison or a flush to the disk.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import harness

from clip_core.models import MODELS

PEER = "import sys, torch; torch.save(torch.load(sys.argv[1], weights_only=True), sys.argv[2])"
CONTENDERS = ["torch", ".h5", ".pdparams", ".safetensors", ".pt"]


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="ViT-B/32", choices=list(MODELS))
    parser.set_defaults(calls=1)
    arguments = parser.parse_args()
    if not arguments.contender:
        harness.compare(__file__, CONTENDERS, "files", arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.pt", Path(folder) / "target"
        harness.save_model(arguments.model, source)
        if arguments.contender == "torch":
            command = [sys.executable, "-c", PEER, source, target]
        else:
            target = target.with_suffix(arguments.contender)
            command = [sys.executable, "-m", "clip", "convert", source, target, "--force"]
        seconds = harness.seconds_of(lambda: subprocess.run(command, check=True, capture_output=True), arguments.calls)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(json.dumps({arguments.model: {"seconds": seconds, "amount": 1, "peak_memory_mib": peak}}))


if __name__ == "__main__":
    main()
