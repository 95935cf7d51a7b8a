//! The P-256 keys that sign assertions, and their public halves as upstreams see them.
//!
//! A key file is PEM. Its first private key (PKCS #8) signs; every further key, private or public, is
//! only published. So keys are rotated without a gap: put the next key second, wait until upstreams
//! have read the key set again, swap the two, and drop the old one when its assertions have expired.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, ParsedPublicKey},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rustls_pki_types::pem::{PemObject, SectionKind};
use serde::Serialize;

use crate::sha256;

/// The start of a `SubjectPublicKeyInfo` (RFC 5480 §2) of a P-256 key; the uncompressed point follows.
const P256_SPKI: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Why a key file cannot be used. Key material is never part of the message.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    #[error("cannot read or make the key file {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the key file {0} is not PEM")]
    NotPem(PathBuf),
    #[error(
        "the key file {path} holds {what}; it takes P-256 keys as PRIVATE KEY (PKCS #8, unencrypted) or PUBLIC KEY (openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256)"
    )]
    Unusable { path: PathBuf, what: String },
    #[error("the key file {0} holds no private key; the first one signs")]
    NoPrivateKey(PathBuf),
    #[error("the system's random number generator failed; no key was made")]
    NoRandomness,
}

/// What a key file holds.
#[derive(Debug)]
pub(crate) struct KeyFile {
    pub(crate) signing: SigningKey,
    /// The public halves of all keys in the file, the signing one first.
    pub(crate) published: Vec<PublicKey>,
}

/// A private key, ready to sign.
#[derive(Debug)]
pub(crate) struct SigningKey {
    pair: EcdsaKeyPair,
    public: PublicKey,
}

/// A public P-256 key as a JWK (RFC 7518 §6.2), members in the order that RFC 7638 §3.3 wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PublicKey {
    crv: &'static str,
    kty: &'static str,
    x: String,
    y: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    kid: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    alg: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    r#use: &'static str,
}

impl KeyFile {
    /// Reads the file; makes one with a new key, readable by its owner only, if there is none.
    pub(crate) fn open(path: &Path) -> Result<Self, SigningKeyError> {
        if !fs::exists(path).map_err(in_file(path))? {
            create(path)?;
        }
        let pem = fs::read(path).map_err(in_file(path))?;
        let mode = fs::metadata(path).map_err(in_file(path))?.permissions().mode();
        if mode & 0o007 != 0 {
            tracing::warn!(path = %path.display(), "the assertion key is readable by every user of this machine; chmod o= it");
        }
        Self::parse(&pem, path)
    }

    fn parse(pem: &[u8], path: &Path) -> Result<Self, SigningKeyError> {
        let unusable = |what: &str| SigningKeyError::Unusable { path: path.to_owned(), what: what.to_owned() };
        let mut signing = None;
        let mut published: Vec<PublicKey> = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            let (kind, der) = section.map_err(|_| SigningKeyError::NotPem(path.to_owned()))?;
            let public = match kind {
                SectionKind::PrivateKey => {
                    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
                        .map_err(|_| unusable("a private key of another kind"))?;
                    let public = PublicKey::from_point(pair.public_key().as_ref())
                        .ok_or_else(|| unusable("a damaged private key"))?;
                    if signing.is_none() {
                        // Wherever it stands, the key that signs is published first.
                        published.insert(0, public.clone());
                        signing = Some(SigningKey { pair, public });
                        continue;
                    }
                    public
                }
                SectionKind::PublicKey => {
                    let point = der.strip_prefix(P256_SPKI).ok_or_else(|| unusable("a public key of another kind"))?;
                    PublicKey::from_point(point).ok_or_else(|| unusable("a damaged public key"))?
                }
                other => return Err(unusable(&format!("a section of kind {other:?}"))),
            };
            if !published.contains(&public) {
                published.push(public);
            }
        }
        let signing = signing.ok_or_else(|| SigningKeyError::NoPrivateKey(path.to_owned()))?;
        Ok(Self { signing, published })
    }
}

impl SigningKey {
    pub(crate) fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The signature as JWS has it: r and s, 32 bytes each (RFC 7518 §3.4). `None` if the system gives no
    /// randomness.
    pub(crate) fn sign(&self, message: &[u8]) -> Option<impl AsRef<[u8]> + use<>> {
        self.pair.sign(&SystemRandom::new(), message).ok()
    }
}

impl PublicKey {
    /// From an uncompressed point, `04 || x || y`, that lies on the curve.
    fn from_point(point: &[u8]) -> Option<Self> {
        ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).ok()?;
        let [4, coordinates @ ..] = point else { return None };
        if coordinates.len() != 64 {
            return None;
        }
        let (x, y) = coordinates.split_at(32);
        let mut key = Self {
            crv: "P-256",
            kty: "EC",
            x: URL_SAFE_NO_PAD.encode(x),
            y: URL_SAFE_NO_PAD.encode(y),
            kid: String::new(),
            alg: "",
            r#use: "",
        };
        // RFC 7638: the digest of the four required members, sorted, without white space.
        let required = serde_json::to_vec(&key).ok()?;
        key.kid = URL_SAFE_NO_PAD.encode(sha256(&required));
        (key.alg, key.r#use) = ("ES256", "sig");
        Some(key)
    }

    /// The key's RFC 7638 thumbprint.
    pub(crate) fn id(&self) -> &str {
        &self.kid
    }
}

/// Makes a key file. Of several nodes that start at once on one disk, one makes it, and all use that.
fn create(path: &Path) -> Result<(), SigningKeyError> {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
        .map_err(|_| SigningKeyError::NoRandomness)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(in_file(path))?;
    let mut suffix = [0; 8];
    aws_lc_rs::rand::fill(&mut suffix).map_err(|_| SigningKeyError::NoRandomness)?;
    let draft = folder.join(format!(".assertion-key-{:016x}", u64::from_le_bytes(suffix)));
    let written = write_private(&draft, &pem_text(pkcs8.as_ref()));
    // A link, unlike a rename, does not replace a file that came into being meanwhile.
    let linked = written.and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    let removed = fs::remove_file(&draft);
    linked.and(removed).map_err(in_file(path))
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// RFC 7468 §10.
fn pem_text(pkcs8: &[u8]) -> String {
    let base64 = STANDARD.encode(pkcs8);
    let mut text = String::from("-----BEGIN PRIVATE KEY-----\n");
    for (n, c) in base64.chars().enumerate() {
        if n > 0 && n % 64 == 0 {
            text.push('\n');
        }
        text.push(c);
    }
    text + "\n-----END PRIVATE KEY-----\n"
}

fn in_file(path: &Path) -> impl Fn(io::Error) -> SigningKeyError + '_ {
    move |source| SigningKeyError::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::testing::P256;

    fn new_pem() -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        KeyFile::open(&path).unwrap();
        fs::read_to_string(path).unwrap()
    }

    fn parse(pem: &str) -> Result<KeyFile, SigningKeyError> {
        KeyFile::parse(pem.as_bytes(), Path::new("key.pem"))
    }

    fn public_pem(private: &str) -> String {
        let key = parse(private).unwrap().signing;
        let der = [P256_SPKI, key.pair.public_key().as_ref()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/key.pem");
        let made = KeyFile::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = KeyFile::open(&path).unwrap();
        assert_eq!(made.published, read.published);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no draft is left behind");
    }

    #[test]
    fn of_nodes_that_start_at_once_all_use_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        let ids = std::thread::scope(|scope| {
            let nodes: Vec<_> = (0..8).map(|_| scope.spawn(|| KeyFile::open(&path).unwrap())).collect();
            nodes.into_iter().map(|node| node.join().unwrap().signing.public.kid).collect::<Vec<_>>()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }

    #[test]
    fn the_first_private_key_signs_and_all_are_published() {
        let (a, b, c) = (new_pem(), new_pem(), new_pem());
        let file = parse(&[public_pem(&c), a.clone(), b.clone(), public_pem(&a)].concat()).unwrap();
        let id = |pem: &str| parse(pem).unwrap().signing.public.kid;
        assert_eq!(file.signing.public.kid, id(&a));
        let published: Vec<_> = file.published.iter().map(|key| key.kid.clone()).collect();
        assert_eq!(published, [id(&a), id(&c), id(&b)]);
    }

    #[test]
    fn files_with_anything_else_are_refused_by_name() {
        let a = new_pem();
        for (pem, expected) in [
            (String::new(), "no private key"),
            (public_pem(&a), "no private key"),
            ("-----BEGIN PRIVATE KEY-----\n!!\n-----END PRIVATE KEY-----\n".into(), "not PEM"),
            (a.replace("PRIVATE KEY", "EC PRIVATE KEY"), "kind"),
            (a.replace("PRIVATE KEY", "CERTIFICATE"), "kind"),
            (rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem(), "another kind"),
            (rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem(), "another kind"),
        ] {
            let error = parse(&pem).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("key.pem"), "{error}");
        }
    }

    #[test]
    fn a_point_off_the_curve_is_no_key() {
        let pem = public_pem(&new_pem());
        let mut der = STANDARD.decode(pem.lines().nth(1).unwrap()).unwrap();
        *der.last_mut().unwrap() ^= 1;
        assert!(PublicKey::from_point(&der[P256_SPKI.len()..]).is_none());
    }

    #[test]
    fn the_key_id_is_the_rfc_7638_thumbprint() {
        let jwk = P256.jwk(serde_json::json!({}));
        let [x, y] = ["x", "y"].map(|name| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap());
        let key = PublicKey::from_point(&[vec![4], x, y].concat()).unwrap();
        let parsed: jsonwebtoken::jwk::Jwk = serde_json::from_value(jwk).unwrap();
        assert_eq!(key.id(), parsed.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256).unwrap());
    }
}
