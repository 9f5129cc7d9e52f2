"""The algorithm: when a round begins, who meets, what a round is. Readable, and tested, without hivemind."""
