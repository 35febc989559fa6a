//! Writes the seeds of every target into `corpus/`; leaves alone what a fuzzer found.

use std::fs;
use std::path::Path;

use peerage_fuzz::seeds;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut count = 0;
    for (target, made) in seeds::all() {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if seeds::is_seed(&path) {
                fs::remove_file(path)?;
            }
        }
        for (name, bytes) in made {
            fs::write(folder.join(name), bytes)?;
            count += 1;
        }
    }
    println!("{count} seeds in {}", corpus.display());
    Ok(())
}
