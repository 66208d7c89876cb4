"""What a loaded model is made of: linear layers, experts, decoder layers, stored formats, kernels."""
