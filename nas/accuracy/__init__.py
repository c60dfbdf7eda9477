"""From a candidate to its mAP: data, training, evaluation."""
