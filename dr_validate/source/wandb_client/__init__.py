"""What is asked of W&B.

`api` and `graphql` (its questions), `http` (files, every byte checked), `manifest` and `versions` (what a version holds),
`project`, `connection` (what a source keeps while it lives), `answers` (what every HTTP answer says).
"""
