"""Makes the leaderboard of the committed records: `python -m experiments.leaderboard`."""

from experiments.leaderboard.board import main

main()
