//! The node agent: sockets, DNS, listeners and forwarders around the tunnel engine.
