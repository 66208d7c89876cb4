"""What can be said of a plan before it runs: power, documents needed, cost, and what is wrong with a gate."""
