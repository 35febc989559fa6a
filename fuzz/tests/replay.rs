//! Runs every stored input through its target, without libFuzzer and on any toolchain.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use peerage_fuzz::{TARGETS, seeds};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn stored(target: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder("corpus").join(target)).expect("every target has a corpus");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths
}

fn replay(target: &str) {
    for path in stored(target) {
        println!("{}", path.display()); // shown if the target panics
        peerage_fuzz::run(target, &fs::read(&path).expect("a readable file"));
    }
    // What every fuzzer tries first.
    for length in [0, 1, 2, 3, 64, 1500] {
        peerage_fuzz::run(target, &vec![0; length]);
        peerage_fuzz::run(target, &vec![0xff; length]);
    }
}

macro_rules! replay {
    ($($target:ident)*) => {
        $(#[test] fn $target() { replay(stringify!($target)); })*

        #[test]
        fn every_target_is_replayed_and_has_a_binary() {
            let here = BTreeSet::from([$(stringify!($target)),*]);
            assert_eq!(here, TARGETS.iter().map(|(name, _)| *name).collect());
            for target in here {
                let binary = folder("fuzz_targets").join(format!("{target}.rs"));
                let text = fs::read_to_string(binary).expect("every target has a binary");
                assert!(text.contains(&format!("run(\"{target}\", data)")), "{target}");
            }
        }
    };
}

replay! {
    model_text model_ticket model_signed model_control model_snapshot model_operator model_linking
    mailbox relay_frame relay_stream stun knock noise_session handshake path_agent relay_client relay_server node
    dns_message http_head socks control_line state words etc_files
}

#[test]
fn the_stored_seeds_are_those_that_make_corpus_makes() {
    for (target, made) in seeds::all() {
        let stored: BTreeSet<PathBuf> = stored(target).into_iter().filter(|path| seeds::is_seed(path)).collect();
        let named: BTreeSet<PathBuf> = made.keys().map(|name| folder("corpus").join(target).join(name)).collect();
        assert_eq!(stored, named, "run fuzz/make-corpus");
        for (name, bytes) in made {
            let path = folder("corpus").join(target).join(&name);
            assert!(fs::read(path).expect("a readable file") == bytes, "{target}/{name} differs: run fuzz/make-corpus");
        }
    }
}
