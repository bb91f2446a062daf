"""How well a sample stands in for the full corpus: `against_full`, when baselines are made, and bias, RMSE, Kendall's tau and
regret."""
