//! Decides whether a peer may open a port, and says why.
