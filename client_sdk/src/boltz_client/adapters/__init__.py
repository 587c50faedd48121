"""Trainers for what people have already: functions, torch modules, scikit-learn estimators.

Import the one you need: `boltz_client.adapters.torch` needs the extra `boltz-mesh-client[torch]`,
`boltz_client.adapters.scikit_learn` needs `boltz-mesh-client[scikit-learn]`.
"""
