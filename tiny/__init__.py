"""The tiny model that ships with calotype: its training data, its trainers, its judge and the demo.

Owns everything that is needed to train `models/tiny/` again and to measure how well it follows captions. The
engine reads only the files in `models/tiny/`.
"""
