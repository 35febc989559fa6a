//! Benchmarks: raw TCP, bare quinn, the engine and whole agents, side by side.
