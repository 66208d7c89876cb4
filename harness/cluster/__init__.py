"""Work spread over many processes: ``dispatch`` hands out units and knows nothing of Ray, ``ray_workers`` runs them."""
