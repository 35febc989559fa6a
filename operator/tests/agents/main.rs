//! Replicas of the operator in this process, and agents that talk to them over real TLS.

mod agent;
mod cluster;
mod stream;
