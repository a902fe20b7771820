"""The vocabulary that both processes share: tables, states, policy, rows, storage."""
