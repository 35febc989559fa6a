//! The relay against honest clients, strangers, thieves and floods, in memory.

mod binding;
mod common;
mod floods;
mod forwarding;
mod mailbox;
mod streams;
