"""BPE and unigram encoding as compiled loops: SentencePiece's ids, many times faster.

normalise   the text that SentencePiece would see, with spaces where it writes ▁
words       cut where no piece can reach across
table       look each word up among those already encoded
bpe/unigram encode the words that are new
encoder     put the ids of the words together
"""
