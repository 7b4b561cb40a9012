"""The science: data, models, training, sampling, metrics. Knows no terminal and no run folders."""
