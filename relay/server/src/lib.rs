//! The relay server: sockets, batching and metrics around the relay value.
