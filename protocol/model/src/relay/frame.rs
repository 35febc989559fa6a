//! The relay frame codec (docs/spec/relay.md).
