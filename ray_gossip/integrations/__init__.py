"""Trainers of other libraries as peers, by one callback. Each file needs its library: the extra of the same name.

lightning.py      for a Lightning Trainer
transformers.py   for a Hugging Face Trainer
membership.py     what both do
"""
