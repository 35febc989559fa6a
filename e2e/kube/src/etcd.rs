//! What etcd holds, asked past the API server: an object that somebody hides from a list is there all the same.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::failed::{Failed, Trying, ensure};

/// Where an API server keeps everything.
const ALL: [&[u8]; 2] = [b"/registry/", b"/registry0"];

/// The size of each object, key and value, by its key.
pub type Held = BTreeMap<String, usize>;

/// Everything that is there.
///
/// # Errors
/// etcd does not answer.
pub fn held(cluster: &Cluster) -> Result<Held, Failed> {
    let folder = cluster.folder();
    let ports = std::fs::read_to_string(folder.join("ports")).trying("read where etcd is")?;
    let port = ports.lines().find_map(|line| line.strip_prefix("etcd_port="));
    let port = port.ok_or_else(|| Failed::new("nobody says where etcd is"))?;
    let pki = folder.join("pki/etcd");
    let [from, to] = ALL.map(|key| BASE64.encode(key));
    let mut curl = std::process::Command::new("curl");
    for (option, file) in [("--cacert", "ca.crt"), ("--cert", "client.crt"), ("--key", "client.key")] {
        curl.arg(option).arg(pki.join(file));
    }
    curl.args(["-sSf", "--noproxy", "*", "--data", &json!({"key": from, "range_end": to}).to_string()]);
    let said = curl.arg(format!("https://127.0.0.1:{port}/v3/kv/range")).output().trying("ask etcd")?;
    ensure(said.status.success(), || format!("etcd: {}", String::from_utf8_lossy(&said.stderr)))?;
    let answer: Value = serde_json::from_slice(&said.stdout).trying("read etcd's answer")?;
    let bytes =
        |value: &Value| BASE64.decode(value.as_str().unwrap_or_default().as_bytes()).trying("read etcd's answer");
    let mut held = Held::new();
    for one in answer["kvs"].as_array().into_iter().flatten() {
        let key = bytes(&one["key"])?;
        let size = key.len() + bytes(&one["value"])?.len();
        held.insert(String::from_utf8_lossy(&key).into_owned(), size);
    }
    ensure(!held.is_empty(), || "etcd holds nothing".into())?;
    Ok(held)
}
