"""Pictures to explain and to train on: photographs that ship with scikit-image, and tiny-imagenet-100."""
