"""The headings under which `tilewright --help` lists its commands."""

BUILD = "Build and run"
LOOK = "Look at what happened"
PASSES = "Graphs and passes"
KERNELS = "Kernels and time"
WRONG = "Find what is wrong"
