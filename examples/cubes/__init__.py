"""What training and asking a model with cubes share: data, prompts, the stages of the paper, curves."""
