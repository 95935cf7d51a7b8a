//! What is kept of the control plane holds hashes of keys, and whom they belong to: on disk it is sealed, so that
//! neither a backup nor a stolen disk without the key tells of it, and nobody else writes what a node starts from.

use std::{fmt, fs, io, os::unix::fs::PermissionsExt, path::Path};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use secrecy::{ExposeSecret, SecretString};
use seiketsu_config::{
    regular,
    secret::{SecretError, SecretRef},
};

use crate::files;

/// AES-256-GCM (NIST SP 800-38D) with a random nonce for each text, and its name as associated data.
pub(super) struct UnsealKey(RandomizedNonceKey);

/// Why there is no key to seal with. The key is never part of the message.
#[derive(Debug, thiserror::Error)]
pub enum UnsealKeyError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("cannot read or make the unseal key {path}: {source}", path = .path.display())]
    File { path: std::path::PathBuf, source: io::Error },
    #[error(
        "the unseal key from {0} is not 64 hexadecimal digits (openssl rand -hex 32); without the right one, what is kept cannot be read and the node waits for its control plane"
    )]
    Form(String),
    #[error("the system's random number generator failed; no unseal key was made")]
    NoRandomness,
}

impl UnsealKey {
    /// From this reference, or else the file in this folder, which is made if there is none.
    pub(super) fn read(given: Option<&SecretRef>, state_dir: &Path) -> Result<Self, UnsealKeyError> {
        if let Some(reference) = given {
            return Self::parse(&reference.read()?, &reference.to_string());
        }
        let path = state_dir.join("unseal.key");
        let failed = |source| UnsealKeyError::File { path: path.clone(), source };
        if !fs::exists(&path).map_err(failed)? {
            let mut key = [0; 32];
            rand::fill(&mut key).map_err(|_| UnsealKeyError::NoRandomness)?;
            files::write_secret(&path, format!("{}\n", hex(&key)).as_bytes()).map_err(failed)?;
        }
        let file = regular::open(&path).map_err(failed)?;
        if file.metadata().map_err(failed)?.permissions().mode() & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "the unseal key is readable by other users of this machine; chmod 600 it");
        }
        let text: SecretString = io::read_to_string(file).map_err(failed)?.into();
        Self::parse(&text, &path.display().to_string())
    }

    fn parse(text: &SecretString, origin: &str) -> Result<Self, UnsealKeyError> {
        let wrong = || UnsealKeyError::Form(origin.to_owned());
        let digits = text.expose_secret().trim();
        let mut key = [0; 32];
        if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        for (index, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).map_err(|_| wrong())?;
        }
        RandomizedNonceKey::new(&AES_256_GCM, &key).map(Self).map_err(|_| wrong())
    }

    /// The nonce, and the sealed text with its tag.
    pub(super) fn seal(&self, name: &Path, text: &str) -> io::Result<Vec<u8>> {
        let mut sealed = Vec::with_capacity(NONCE_LEN + text.len() + 16);
        sealed.extend_from_slice(text.as_bytes());
        let nonce = self.0.seal_in_place_append_tag(associated(name), &mut sealed);
        let nonce = nonce.map_err(|_| io::Error::other("sealing failed"))?;
        sealed.splice(..0, nonce.as_ref().iter().copied());
        Ok(sealed)
    }

    /// Nothing, if it was not sealed with this key under this name, or was altered since.
    pub(super) fn open(&self, name: &Path, mut sealed: Vec<u8>) -> Option<String> {
        let (nonce, text) = sealed.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let text = self.0.open_in_place(nonce, associated(name), text).ok()?;
        String::from_utf8(text.to_vec()).ok()
    }
}

impl fmt::Debug for UnsealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnsealKey")
    }
}

fn associated(name: &Path) -> Aad<&[u8]> {
    Aad::from(name.as_os_str().as_encoded_bytes())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NAME: &str = "control-plane/tenants/acme";

    #[test]
    fn what_was_sealed_opens_under_its_name_and_unaltered_only() {
        let folder = tempfile::tempdir().unwrap();
        let key = UnsealKey::read(None, folder.path()).unwrap();
        let name = Path::new(NAME);
        let sealed = key.seal(name, "a secret").unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_ne!(sealed, key.seal(name, "a secret").unwrap());
        assert_eq!(key.open(name, sealed.clone()).as_deref(), Some("a secret"));
        assert_eq!(key.open(Path::new("control-plane/tenants/globex"), sealed.clone()), None);
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert_eq!(key.open(name, altered), None, "byte {at}");
        }
        for length in 0..sealed.len() {
            assert_eq!(key.open(name, sealed[..length].to_vec()), None);
        }
        // The same key after a restart, another one in another folder.
        assert!(UnsealKey::read(None, folder.path()).unwrap().open(name, sealed.clone()).is_some());
        let other = tempfile::tempdir().unwrap();
        assert_eq!(UnsealKey::read(None, other.path()).unwrap().open(name, sealed), None);
    }

    #[test]
    fn the_key_is_made_once_and_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        UnsealKey::read(None, folder.path()).unwrap();
        let path = folder.path().join("unseal.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "hunter2").unwrap();
        let error = UnsealKey::read(None, folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("unseal.key") && error.contains("64 hexadecimal") && !error.contains("hunter2"),
            "{error}"
        );
        let reference: SecretRef = format!("${{file:{}}}", path.display()).parse().unwrap();
        assert!(UnsealKey::read(Some(&reference), folder.path()).is_err());
        fs::write(&path, "0f".repeat(32)).unwrap();
        UnsealKey::read(Some(&reference), Path::new("/nowhere")).unwrap();
    }
}
