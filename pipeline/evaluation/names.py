"""Names of test noise, for help texts and errors; apart, so that `--help` imports nothing heavy."""

NAMES_HELP = "awgn:SIGMA in grey levels; niid:1, niid:2, niid:3; poisson:GAIN:SIGMA in grey levels; pairs"
