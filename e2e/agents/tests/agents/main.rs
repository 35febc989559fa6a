//! What agents promise, shown with processes, sockets and NATs: the path moves under a download, programs are killed
//! and come back, trust is taken back, and people type wrong things.

mod bad_input;
mod field;
mod nat;
mod pages;
mod restarts;
mod revocation;
mod support;
mod transfer;
