"""The whole service on one machine: real servers as child processes, all state in one folder."""
