//! The relay as a value: cookies, bindings, routing and quotas, without sockets or clocks.
