"""Experiment: COSEM's pretrained setup04 fine-tuned on all tested classes at 8 nm."""
