//! Writes the files that are generated from the custom resources' types.
//!
//! Run it from anywhere: `cargo run -p peerage-crds --bin crdgen`.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the crate has no parent folder")?;
    for (path, content) in peerage_crds::generate::files()? {
        let file = top.join(&path);
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).map_err(|e| format!("could not make the folder of {path}: {e}"))?;
        }
        std::fs::write(&file, content).map_err(|e| format!("could not write {path}: {e}"))?;
        println!("{path}");
    }
    Ok(())
}
