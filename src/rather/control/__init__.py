"""Gymnasium's world: environments, roll-outs and policies. Importing it registers rather/CheckpointCar-v0 and rather/GridWorld-v0."""

import gymnasium

gymnasium.register("rather/CheckpointCar-v0", "rather.control.car:CheckpointCar")
gymnasium.register("rather/GridWorld-v0", "rather.control.grid:GridWorld")
