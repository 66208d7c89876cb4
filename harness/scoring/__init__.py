"""Log-likelihoods and greedy continuations of many token sequences that begin alike, each beginning computed once.

    packing ─▶ likelihoods     sequences become rows of a batch, each row a tree of token sequences
    caches  ─▶ decoding        continuations that end early leave the batch, and others take their place
    last_block                 what follows the last attention, at used tokens alone
    encodings                  token ids of texts, each encoded once
    fitness                    models whose answers would depend on it, which are scored one sequence per row
    agreement                  whether two ways of scoring gave the same
    side                       one side of a comparison, which compares its first answers with those of a plain loop

None of these knows lm-eval; ``harness/probes/_scorer.py`` puts them behind lm-eval's task code. ``task_library`` loads
its tasks, and ``guards`` keeps it from touching what is not its own.
"""
