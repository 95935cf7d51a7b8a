//! Tokens that were looked up and are none: who sends the same one again and again does not have the store asked again and
//! again. One that is made later is another one, since tokens are random.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// As many are known at most.
const MANY: usize = 10_000;

/// A store that was set back may know a token again.
const FOR: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct UnknownTokens(Mutex<HashMap<[u8; 32], Instant>>);

impl UnknownTokens {
    pub(super) fn has(&self, token: &SecretString) -> bool {
        self.0.lock().get(&hash(token)).is_some_and(|at| at.elapsed() < FOR)
    }

    pub(super) fn add(&self, token: &SecretString) {
        let mut known = self.0.lock();
        if known.len() >= MANY {
            known.retain(|_, at| at.elapsed() < FOR);
        }
        // Of a flood of different ones none comes again.
        if known.len() >= MANY {
            known.clear();
        }
        known.insert(hash(token), Instant::now());
    }
}

fn hash(token: &SecretString) -> [u8; 32] {
    Sha256::digest(token.expose_secret()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_found_is_known_and_never_more_than_so_many() {
        let unknown = UnknownTokens::default();
        let token = |number: usize| SecretString::from(format!("sa_{number}"));
        assert!(!unknown.has(&token(0)));
        for number in 0..MANY + 10 {
            unknown.add(&token(number));
            assert!(unknown.has(&token(number)));
        }
        assert!(unknown.0.lock().len() <= MANY);
    }
}
