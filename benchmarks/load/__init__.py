"""The load generator: open and closed loops, and what is made of their times. Senders begin soon: no torch here."""
