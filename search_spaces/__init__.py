"""Search spaces, one YAML file each; `nas.space.space.SearchSpace` documents their format."""
