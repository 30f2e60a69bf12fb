"""All benchmarks, one after the other: ``python benchmarks/run.py [--quick]``; tables go to ``.bench/*.md``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    failed = [
        name
        for name in ("environment", "rollout", "grpo_vs_trl", "society")
        if subprocess.run([sys.executable, HERE / f"{name}.py", *sys.argv[1:]], check=False).returncode
    ]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
