//! Fuzz targets for everything that reads bytes which others wrote.
//!
//! A target is a function of bytes that must return: whatever it promises beyond "does not panic" it asserts, and its
//! comment says. `fuzz_targets/` hands it to libFuzzer, `tests/replay.rs` runs it over the stored corpus on any
//! toolchain, and [`seeds`] makes the corpus that everything starts from.

mod agent;
mod feed;
mod mailbox;
mod model;
mod node;
mod noise;
mod path;
mod relay;
pub mod seeds;
mod wire;

/// One input.
pub type Target = fn(&[u8]);

/// Every target, by the name of its folder in `corpus/` and of its file in `fuzz_targets/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("model_text", model::text),
    ("model_ticket", model::ticket),
    ("model_signed", model::signed),
    ("model_control", model::control),
    ("model_snapshot", model::snapshot),
    ("model_operator", model::operator),
    ("model_linking", model::linking),
    ("mailbox", mailbox::mailbox),
    ("relay_frame", wire::relay_frame),
    ("relay_stream", wire::relay_stream),
    ("stun", wire::stun),
    ("knock", wire::knock),
    ("noise_session", noise::noise_session),
    ("handshake", noise::handshake),
    ("path_agent", path::path_agent),
    ("relay_client", relay::relay_client),
    ("relay_server", relay::relay_server),
    ("node", node::node),
    ("dns_message", agent::dns_message),
    ("http_head", agent::http_head),
    ("socks", agent::socks),
    ("control_line", agent::control_line),
    ("state", agent::state),
    ("words", agent::words),
    ("etc_files", agent::etc_files),
];

/// Runs one target on one input.
///
/// # Panics
/// If there is no such target, or the input breaks one of its promises.
pub fn run(target: &str, data: &[u8]) {
    let (_, function) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of this name");
    function(data);
}
