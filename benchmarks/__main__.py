"""`python -m benchmarks [kernels] [models] [serving]`: see README.md."""

import sys

if __name__ == "__main__":
    from benchmarks.runner import main  # here: processes that are spawned, as senders are, would import torch with it

    sys.exit(main())
