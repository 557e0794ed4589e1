"""InterLCM (arXiv 2502.02215): a latent consistency model that restores aligned faces, as published."""
