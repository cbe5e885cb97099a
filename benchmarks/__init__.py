"""Every speed and memory figure that the README quotes; ``python -m benchmarks`` lists them."""
