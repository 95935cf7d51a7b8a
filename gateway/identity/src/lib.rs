//! Who is calling, and how the gateway knows.
//!
//! A request's header fields go through [`credentials`] (what does it show?), [`authenticate`] (is it
//! genuine, and whose is it?) and come out as one [`principal::Principal`]; [`assertion`] tells the
//! upstream about it, and [`forged`] keeps clients from telling upstreams such things themselves.
//!
//! The crate knows HTTP's types and nothing of the proxy. What it needs from outside comes in as a
//! trait: time as [`clock::Clock`], the network as [`jwks::HttpFetch`].

pub mod api_key;
pub mod assertion;
pub mod authenticate;
mod bounded_cache;
pub mod certificate;
pub mod clock;
pub mod credentials;
pub mod failure;
pub mod forged;
mod jwk;
pub mod jwks;
pub mod jwt;
pub mod plain_headers;
pub mod principal;
pub mod signing_key;
pub mod state;
#[cfg(test)]
mod testing;
pub mod verified_cache;

/// SHA-256 of some bytes, for everything that is looked up by hash.
fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    out
}
