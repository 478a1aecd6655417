"""Everything small that tests are made of: the one place for tiny models and their surroundings.

`models` and `encoder` write random checkpoints to disk; `receiver` has a tokenizer, a decoder and
rows; `objectives`, `bottlenecks` and `training` have what a part, or a loop of its own, needs;
`evaluation` has a whole wire without a run, `run` the directory of one; `compilations` counts
programs; `killed` ends a run at a file; `arch` has the sizes of decoders.
"""
