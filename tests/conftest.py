"""What every test relies on: nothing is fetched, one thread a process, and examples that are the same on every run."""

import os

# Before anything imports torch, tokenizers or huggingface_hub; servers that tests start inherit them.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("tercet", derandomize=True, deadline=None, database=None)
settings.load_profile("tercet")
