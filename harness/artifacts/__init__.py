"""The artifact to be shipped: a model saved to files, reloaded in a fresh process, and compared with the one in memory.

model ─ outputs ─▶ before ─┐
  │ save                   ├─▶ compared
  ▼                        │
folder ─ fresh process: load, outputs ─▶ answer
"""
