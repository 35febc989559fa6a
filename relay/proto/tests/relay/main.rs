//! The relay against honest clients, strangers, thieves and floods, in memory.

mod binding;
mod common;
mod floods;
mod forwarding;
mod line;
mod mailbox;
mod streams;
