//! Emulated networks for the demo and the tests: namespaces, TUN links and user-space NATs.
