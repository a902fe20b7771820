"""The pages of tenants: all of them with what they use, and one of them."""
