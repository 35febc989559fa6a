//! What local programs see of the agent, on real loopback sockets and over a tunnel made of memory.

mod dns;
mod listen;
mod proxy;
mod support;
mod tcp;
mod udp;
