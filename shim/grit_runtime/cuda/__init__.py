"""CUDA around CRIU: who is on the GPU, suspend and resume, limits, the map from old GPUs to new ones.

`grit_runtime.gpu` is the face of this package. libcuda and NVML are loaded only in the helper process (`helper.py`):
cuInit opens /dev/nvidia* and starts threads, which a runtime that freezes and dumps containers must not have itself.
"""
