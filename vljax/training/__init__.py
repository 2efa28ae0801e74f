"""The training loop, mesh and sharding rules, checkpoints and logging: knows stages, no system."""
