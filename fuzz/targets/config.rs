//! A file of tenants or of a node: any text is read or refused, and what is read can be written and read again.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use seiketsu_config::load;

fuzz_target!(|text: &str| {
    let origin = Path::new("tenants.yaml");
    let _ = load::node(text, origin);
    let Ok(first) = load::tenants_with(None, text, origin) else { return };
    let second = load::tenants_with(Some(&first), text, origin).expect("read before");
    assert!(first.tenants().iter().zip(second.tenants()).all(|(first, second)| first == second));
});
