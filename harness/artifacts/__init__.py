"""What would be shipped: a model written as files, read back in a fresh process, and compared with the one in memory.

model ─ outputs ─▶ before ─┐
  │ save                   ├─▶ compared
  ▼                        │
folder ─ fresh process: load, outputs ─▶ answer
"""
