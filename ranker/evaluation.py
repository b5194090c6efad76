"""How good is a ranking? Evaluation on any event log -> Report; the promotion gate -> Verdict (ranker/gate.py)."""

from ranker.gate import Gate, Sums, Verdict

__all__ = ["Gate", "Sums", "Verdict"]
