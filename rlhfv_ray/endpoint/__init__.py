"""Models behind a server that speaks OpenAI's chat protocol: calls, cache, budget, rate limit."""
