"""The first four entries of every vocabulary of words, which are no words.

A framed sequence is `START`, its words, `END`, then `PAD` to the room's end. `UNKNOWN` stands for a
word that the vocabulary lacks. Ids above `END` are what a text is written in.
"""

PAD, START, END, UNKNOWN = range(4)
