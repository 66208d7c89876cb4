"""What the report and the terminal show: numbers and names in readable form, sentences, drawings, and
small pure summaries of the tables. Nothing here changes a number that is compared; everything is for the
eye only.
"""
