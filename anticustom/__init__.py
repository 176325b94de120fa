"""The methods: attacks, surrogates, losses, timestep policies, customizers. Tensors and models in,
tensors and weights out.
"""
