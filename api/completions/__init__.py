"""Legacy completions: each prompt is one turn of a chat."""
