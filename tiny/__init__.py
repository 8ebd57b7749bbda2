"""The tiny model that ships with calotype: its data, its trainers and its judge.

Owns everything needed to make `models/tiny/` again and to say how well it obeys a caption.
It knows nothing of jobs, workers or HTTP; the engine reads only the files in `models/tiny/`.
"""
