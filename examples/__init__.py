"""A package, since others (tqdm-multiprocess, which lmms-eval requires) install one of that name too."""
