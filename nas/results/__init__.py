"""From a study to what a person keeps."""
