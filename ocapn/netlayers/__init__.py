"""Ways to reach peers (Netlayers specification). `base` says what a netlayer offers; each has a module."""
