"""Pretrained weights and photographs that come inside ordinary packages: built, served, measured."""
