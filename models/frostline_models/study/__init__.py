"""The study: what pretraining, head capacity and backbone size do to frozen backbones."""
