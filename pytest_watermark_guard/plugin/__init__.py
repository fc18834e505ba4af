"""Everything that knows pytest; nothing else does."""
