"""Run pages and the scoreboard, made from records; only the commands import this room."""
