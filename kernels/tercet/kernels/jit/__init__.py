"""The Triton kernels and their launchers, one file an op. Importing any of them imports triton."""

import os

# Multiply-adds are fused whatever a version's default is; triton 3.9 warns where nothing is said.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
