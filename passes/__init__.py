"""Graph to graph to regions: rewrites, raising, fusion, quantization, and the cut into kernels. Imports only the IR.

regions.py, grouping.py and memory_plan.py stand; the rest builds on them.
"""
