//! A request target: its normal form stays the same, stays below the root and hides no segment.
#![no_main]

use libfuzzer_sys::fuzz_target;
use seiketsu_gateway::tenancy::path::normalise;

fuzz_target!(|target: &[u8]| {
    let Ok(normal) = normalise(target) else { return };
    let path = normal.as_str();
    assert!(path.starts_with('/') && !path.contains("//"), "{path}");
    assert!(path.split('/').all(|segment| segment != "." && segment != ".."), "{path}");
    assert!(path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\'), "{path}");
    let lower = path.to_ascii_lowercase();
    assert!(!lower.contains("%2f") && !lower.contains("%5c") && !lower.contains("%2e"), "{path}");
    let again = normalise(path.as_bytes()).expect("a normal form is one");
    assert!(!again.is_rewritten() && again.as_str() == path, "{path}");
});
