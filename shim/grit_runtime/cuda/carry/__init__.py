"""GPU memory past CRIU: saved from suspended processes and given back to restored ones by several threads.

A suspended process has the GPU's bytes in private anonymous mappings that it had not before. CRIU writes and reads
those with one thread; here they are copied by several (process_vm_readv(2)), and dropped from the process before CRIU
looks, so that its images hold the empty mappings alone. See docs/design.md, "GPU memory past CRIU".
"""
