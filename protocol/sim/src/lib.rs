//! A simulated network in virtual time: links, NATs, relays and agents.
