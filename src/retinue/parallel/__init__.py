"""Several processes: what is read of a launch, meshes, sharded data parallelism, tensor plans."""
