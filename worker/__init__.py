"""The GPU side: trains, measures and serves. The only place where tensors live."""
