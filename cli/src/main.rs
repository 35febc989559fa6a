//! The `peerage` command.

fn main() {}
