"""Raw records -> HDF5 files of ready token rows, in the layout of Cerebras ModelZoo."""
