"""The reception of a small restaurant, "Casa Tandem": what its callers say and what is answered.

84 intents, 22,078 phrasings for training (`training/`) and 702 held out (`held_out/`), counted before their slots are
filled. All were written by hand. The held-out ones were written before the first training and never change:
`held_out.sha256` holds their hash (`cat held_out/*.toml | sha256sum`), and a test compares it. A change of them would
make every number that was measured with them meaningless; new ones belong into a new folder.

Edit distance in words, over the longer's length, from a held-out phrasing to the nearest training phrasing of its
intent: mean 0.56, smallest 0.40.

`operators.txt` is of no restaurant: what operators anywhere may have an agent say, a line each; training never says
those of `operators_held_out.txt`.

`reader` loads and checks the phrasings, `slots` fills them and says which combinations are held out, `reception`
answers, `distance` measures.
"""
