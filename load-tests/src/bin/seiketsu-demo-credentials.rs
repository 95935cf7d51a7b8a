//! Makes the credentials of the demo tenants, once: API keys, an issuer's keys, and a token of it.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::{
    rand::{SecureRandom, SystemRandom},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use clap::Parser;
use serde_json::json;

const TENANTS: [&str; 4] = ["acme", "globex", "initech", "umbrella"];
const TOKEN_LIFETIME: Duration = Duration::from_hours(24 * 30);

/// Writes the credentials of the demo tenants into a folder; what is there already stays.
#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value = "var/demo-keys")]
    folder: PathBuf,
}

fn main() -> Result<()> {
    let Arguments { folder } = Arguments::parse();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for tenant in TENANTS {
        write_once(&folder.join(tenant), || Ok(format!("sk_demo{tenant}_{}\n", random_text(40)?)))?;
    }
    // Both belong together, so both are made or none.
    if !folder.join("acme-jwks.json").exists() || !folder.join("acme.jwt").exists() {
        let (jwks, token) = issuer_and_token()?;
        write(&folder.join("acme.jwt"), &token)?;
        write(&folder.join("acme-jwks.json"), &jwks)?;
    }
    // Where documents of the control plane may name them.
    for tenant in TENANTS {
        copy(&folder.join(tenant), &folder.join("files").join(tenant).join("key"))?;
    }
    copy(&folder.join("acme-jwks.json"), &folder.join("files/acme/jwks.json"))
}

fn issuer_and_token() -> Result<(String, String)> {
    let random = SystemRandom::new();
    let failed = |_| anyhow!("cannot make a key: the system's random number generator failed");
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed)?;
    // An uncompressed point: 0x04, then x and y (SEC 1, §2.3.3).
    let point = key.public_key().as_ref();
    let (x, y) = point.get(1..).and_then(|xy| xy.split_at_checked(32)).context("not a P-256 key")?;
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let jwks = json!({ "keys": [{
        "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "demo", "x": encode(x), "y": encode(y),
    }] });
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let head = json!({ "alg": "ES256", "typ": "JWT", "kid": "demo" });
    let claims = json!({
        "iss": "https://login.acme.localhost", "aud": "acme-api", "sub": "demo-user",
        "scope": "read write", "roles": ["agent"], "iat": now, "exp": now + TOKEN_LIFETIME.as_secs(),
    });
    let signed = format!("{}.{}", encode(head.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
    let signature = key.sign(&random, signed.as_bytes()).map_err(failed)?;
    Ok((format!("{jwks}\n"), format!("{signed}.{}\n", encode(signature.as_ref()))))
}

fn random_text(length: usize) -> Result<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789AB";
    let mut bytes = vec![0; length];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow!("the system's random number generator failed"))?;
    Ok(bytes.into_iter().map(|byte| char::from(ALPHABET[usize::from(byte % 64)])).collect())
}

fn write_once(path: &Path, content: impl FnOnce() -> Result<String>) -> Result<()> {
    if path.exists() { Ok(()) } else { write(path, &content()?) }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let made = to.parent().map_or(Ok(()), fs::create_dir_all);
    // With its permissions.
    let copied = made.and_then(|()| fs::copy(from, to));
    copied.map(drop).with_context(|| format!("cannot write {}", to.display()))
}

fn write(path: &Path, content: &str) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(content.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))
}
