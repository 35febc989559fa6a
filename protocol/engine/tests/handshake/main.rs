//! Knock and handshake, from outside: two endpoints in memory and virtual time, good ones, strangers and liars.

mod completes;
mod refusals;
mod strangers;
mod support;
