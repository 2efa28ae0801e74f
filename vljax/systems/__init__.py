"""The systems, one package each.

A system has `get_config()` (its fields, with a recipe on the embedded scenes),
`make_model(config)`, `stages(config)`, and what its doors need: `add_generate_flags`, `generate`,
`add_evaluate_flags`, `evaluate`.
"""
