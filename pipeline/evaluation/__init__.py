"""The command `denoise-nas evaluate`: models of every kind on named sets and noises, in one table."""
