//! The program as a process.

use std::process::{Command, Stdio};

#[test]
fn what_is_logged_to_a_pipe_has_no_colours() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerage-operator"));
    // Whoever has an API server here is not meant.
    command.env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST").env("HOME", "/nonexistent");
    let ended = command.env_remove("NO_COLOR").stdin(Stdio::null()).output().expect("it runs");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("ERROR"), "{said}");
    assert!(!said.contains('\x1b'), "{said:?}");
}
