"""How well a sample stands in for the full corpus: `against_full` says when baselines are made, `comparison` computes bias,
RMSE, Kendall's tau and regret."""
