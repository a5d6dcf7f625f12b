"""First storey: images to a store of predictions, by CNNs; mostly used as `cnn-extract`."""
