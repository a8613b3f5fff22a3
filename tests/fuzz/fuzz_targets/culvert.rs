//! The targets under libFuzzer: `CULVERT_FUZZ_TARGET` names the one that runs; its seeds are written into the folder
//! `CULVERT_FUZZ_SEEDS`, and its words into the dictionary `CULVERT_FUZZ_WORDS`.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use culvert_fuzz::{TARGETS, Target, target};

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

fn chosen() -> &'static Target {
    CHOSEN.get_or_init(|| {
        let name = std::env::var("CULVERT_FUZZ_TARGET").unwrap_or_default();
        target(&name).unwrap_or_else(|| {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            eprintln!("CULVERT_FUZZ_TARGET is {name:?}; there are {}", names.join(" "));
            std::process::exit(2);
        })
    })
}

fn begin() -> std::io::Result<()> {
    let target = chosen();
    if let Some(folder) = std::env::var_os("CULVERT_FUZZ_SEEDS") {
        for (at, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(Path::new(&folder).join(format!("seed-{at}")), seed)?;
        }
    }
    if let Some(file) = std::env::var_os("CULVERT_FUZZ_WORDS") {
        let quoted = |word: &&str| word.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
        // An empty dictionary would be refused.
        let words = target.words.iter().chain(&["\0"]);
        let lines: Vec<String> = words.map(|word| format!("\"{}\"\n", quoted(word))).collect();
        std::fs::write(file, lines.concat())?;
    }
    Ok(())
}

libfuzzer_sys::fuzz_target!(
    init: begin().expect("seeds cannot be written"),
    |data: &[u8]| {
        (chosen().run)(data);
    }
);
