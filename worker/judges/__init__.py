"""The judges that know no world: one file for each kind, over one way to load and to batch.

`worker.judge` opens them, `worker.judgement` says what they speak in, `models.judges` what they are named
by. A kind of judge model is a `Method` (`model_judge`): how an exchange becomes tokens, how the model is
asked, and what its output means. Nothing here knows jobs, evaluations or policies.
"""
