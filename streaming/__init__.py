"""The loops on the log: profiles, trainer, monitor."""
