"""What a run keeps, and weights of other programs.

`checkpoint` writes and reads the whole state, `newest` chooses the one to go on with, `resume`
restores it; `weights_file` reads any file of torch, `inert` the objects of other programs in it.
"""
