//! What control plane and gateway nodes say to each other.
//!
//! A node opens a WebSocket to `/internal/v1/subscribe`, with its token as bearer token (RFC 6750), and says
//! [`Hello`]. From then on the control plane sends [`Update`]s, which the node applies and answers one by one with
//! [`Applied`]: what is in force, and what it refused and why. Heartbeats go from the node to the control plane.
//!
//! The control plane sends states, not steps: an update holds every document that has changed since the revision that
//! the node has, as it is now. So one that missed a hundred changes of a tenant gets one document, and any update may be
//! lost with its connection and is made good by the next one.
//!
//! A message is one line of JSON as a text message, or the same compressed with zstd (RFC 8878) as a binary one.
//!
//! Beside that, the control plane gives [`Order`]s, which change nothing that is configured; a node that says in its
//! [`Hello`] that it takes them answers each with [`Carried`].
//!
//! Both sides may differ by one release: keys that are not known are ignored here, unlike in what people write. The
//! form of the documents is a number of its own, of which node and control plane take the highest that both know.

pub mod usage;

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read},
    str::FromStr,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use self::usage::{AskUsed, UsagePage, UsageTaken, Used};
use crate::values::{Id, InvalidValue, text_value};

/// Where nodes connect.
pub const SUBSCRIBE_PATH: &str = "/internal/v1/subscribe";

/// The forms of documents that this release reads and writes, the newest first.
pub const SCHEMAS: &[u32] = &[1];

/// How often a node says that it is there. One that has said nothing for three times as long is gone.
pub const HEARTBEAT_SECONDS: u64 = 2;

/// The largest message, in bytes of JSON. Whole configurations come in several.
pub const MOST_MESSAGE_BYTES: usize = 64 << 20;

/// The largest message of a node, in bytes of JSON.
pub const MOST_SAID_BYTES: usize = 8 << 20;

/// What a part of a whole configuration holds, about: it is parsed while the next one is under way.
pub const PART_BYTES: usize = 4 << 20;

/// Messages that are larger are compressed.
const COMPRESS_FROM: usize = 16 << 10;

/// What a node says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromNode {
    Hello(Hello),
    Applied(Applied),
    Heartbeat(Heartbeat),
    Carried(Carried),
    /// Only to who says in [`Welcome`] that it takes usage.
    Usage(UsagePage),
    AskUsed(AskUsed),
}

/// What the control plane says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToNode {
    Welcome(Welcome),
    Update(Box<Update>),
    Order(Box<Order>),
    /// Only to who says in [`Hello`] that it has usage.
    UsageTaken(UsageTaken),
    Used(Used),
}

/// The first message of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub node: Id,
    /// New at each start of the node.
    pub run: Uuid,
    /// Of the gateway, as in `0.1.0`.
    pub version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Id>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Id>,
    /// The forms of documents that it reads.
    pub schemas: Vec<u32>,
    /// What it holds, if it holds anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<Held>,
    /// Whether it carries out orders; whoever does not must not be given any.
    #[serde(default, skip_serializing_if = "is_false")]
    pub orders: bool,
    /// Whether it knows of [`usage`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub usage: bool,
}

/// A state of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The store that it is of: revisions of another one mean nothing.
    pub store: Uuid,
    pub revision: u64,
    pub sum: Sum,
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub store: Uuid,
    /// The form that documents will have.
    pub schema: u32,
    /// How often the control plane wants to hear of the node.
    pub heartbeat_seconds: u64,
    /// Whether it takes [`usage`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub usage: bool,
}

/// Documents that a node is to hold. Applied whole, but that what is wrong with one tenant leaves that tenant, and only
/// that one, in its former state.
#[derive(Debug, Serialize, Deserialize)]
pub struct Update {
    /// Comes back in [`Applied`].
    pub nonce: u64,
    /// The state that it leads to.
    pub to: Held,
    /// The revision that it follows upon. None: it is the whole configuration, and what is not in it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Another message with this nonce follows, and nothing is applied before the last one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more: bool,
    /// What stands beside the tenants: `defaults`, `plans`, `upstreams`. None: it is what it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Document>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub put: Vec<Document>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<Id>,
}

/// A tenant, or the head: a [`Tenant`](crate::tenant::Tenant), or a
/// [`TenantFile`](crate::tenant::TenantFile) without its `revision` and `tenants`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Document {
    /// None: the head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Id>,
    /// The revision that it was last changed in.
    pub revision: u64,
    /// JSON, to the letter: its hash is a part of the sum.
    pub content: Box<RawValue>,
}

/// What a node made of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub nonce: u64,
    /// The revision that is in force, but for what was refused.
    pub revision: u64,
    /// Documents that are not in force as they are, though the node holds them, also of earlier updates. Where they are
    /// very many, later ones have no errors, and only the first ones stand here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
    /// How many more documents are refused than stand in `refused`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refused_more: u64,
    /// The node does not hold what it ought to, and asks for the whole configuration.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lost: bool,
}

/// A document that is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// None: the head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Id>,
    pub errors: Vec<String>,
}

/// Sent as often as [`Welcome`] says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// What is in force.
    pub revision: u64,
    /// Whether the node answers 200 to `/readyz`.
    pub ready: bool,
    /// Whether it is going to end, and takes no new connections.
    pub draining: bool,
}

/// Something to be done at once. To do it again does no harm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Comes back in [`Carried`].
    pub id: Uuid,
    pub task: Task,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Serve this of a tenant no more from the cache.
    Purge { tenant: Id, what: Purged },
    /// Serve nothing of what is stored: it is not known any more what was purged while the node was away.
    PurgeEverything,
    /// Fetch these URLs into the cache, with these header fields, none of which [is a credential](is_credential)
    /// or [of a client alone](is_of_client_alone).
    Warm {
        urls: Vec<String>,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<String, String>,
    },
}

/// Whether a request with this field tells who is calling. What such a request brings is not for everybody.
pub fn is_credential(name: &http::HeaderName) -> bool {
    [http::header::AUTHORIZATION, http::header::COOKIE, http::header::PROXY_AUTHORIZATION].contains(name)
}

/// Whether a field is about a client's connection, what it has already, or which part of a response it wants. The cache
/// leaves these out when it asks for itself.
pub fn is_of_client_alone(name: &http::HeaderName) -> bool {
    use http::header;
    [
        header::HOST,
        header::CONNECTION,
        header::TE,
        header::UPGRADE,
        header::EXPECT,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::RANGE,
        header::IF_RANGE,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::CACHE_CONTROL,
        header::PRAGMA,
    ]
    .contains(name)
}

/// What is purged of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purged {
    All,
    Url(String),
    /// All paths below a URL, or below a path of all hosts.
    Prefix(String),
    Tag(String),
}

/// What came of an order. One that takes a while is answered more than once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    pub id: Uuid,
    /// There is nothing more to come.
    pub done: bool,
    /// Why it was not carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How far warming is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmed: Option<Warmed>,
}

/// Of a list of URLs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warmed {
    pub total: u64,
    pub stored: u64,
    /// Answered, but not to be stored.
    pub not_stored: u64,
    /// Not answered, with an error of the origin, or on no route with a cache.
    pub failed: u64,
}

/// A hash of a set of documents, which grows and shrinks with it: the sum of their hashes, modulo 2²⁵⁶. It shows that
/// two sides hold the same, not that nobody wants them to differ: both ends of a connection are trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum([u64; 4]);

impl Sum {
    /// Of one document.
    pub fn of(tenant: Option<&Id>, content: &str) -> Self {
        // No id is empty.
        let id = tenant.map_or("", Id::as_str);
        let mut hash = Sha256::new();
        hash.update((id.len() as u64).to_be_bytes());
        hash.update(id);
        hash.update(content);
        let hash: [u8; 32] = hash.finalize().into();
        let mut limbs = [0; 4];
        for (limb, bytes) in limbs.iter_mut().zip(hash.chunks_exact(8)) {
            *limb = bytes.iter().fold(0, |limb, byte| limb << 8 | u64::from(*byte));
        }
        Self(limbs)
    }

    #[must_use]
    pub fn with(self, document: Self) -> Self {
        let mut carry = false;
        let mut sum = [0; 4];
        // The last limb is the least significant.
        for index in (0..4).rev() {
            let (first, over) = self.0[index].overflowing_add(document.0[index]);
            let (second, again) = first.overflowing_add(carry.into());
            (sum[index], carry) = (second, over || again);
        }
        Self(sum)
    }

    #[must_use]
    pub fn without(self, document: Self) -> Self {
        let mut borrow = false;
        let mut difference = [0; 4];
        for index in (0..4).rev() {
            let (first, under) = self.0[index].overflowing_sub(document.0[index]);
            let (second, again) = first.overflowing_sub(borrow.into());
            (difference[index], borrow) = (second, under || again);
        }
        Self(difference)
    }
}

/// In hexadecimal, 64 digits.
impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|limb| write!(f, "{limb:016x}"))
    }
}

impl FromStr for Sum {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || InvalidValue::new("a sum is 64 hexadecimal digits");
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut limbs = [0; 4];
        for (index, limb) in limbs.iter_mut().enumerate() {
            *limb = u64::from_str_radix(&text[16 * index..16 * (index + 1)], 16).map_err(|_| wrong())?;
        }
        Ok(Self(limbs))
    }
}

text_value!(Sum, "Sum", "A hash of documents: 64 hexadecimal digits", Some("^[0-9a-f]{64}$"));

/// A message as it goes over the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Text(String),
    Binary(Vec<u8>),
}

/// Why a message cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the message is not compressed as it should be: {0}")]
    Compression(io::Error),
    #[error("the message is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the message is not what it should be: {0}")]
    Json(#[from] serde_json::Error),
}

/// Writes a message; a large one compressed.
pub fn write<T: Serialize>(message: &T) -> Result<Frame, FrameError> {
    let text = serde_json::to_string(message)?;
    if text.len() < COMPRESS_FROM {
        return Ok(Frame::Text(text));
    }
    zstd::encode_all(text.as_bytes(), 1).map(Frame::Binary).map_err(FrameError::Compression)
}

/// Reads a message that was sent as text.
pub fn read_text<T: DeserializeOwned>(text: &str) -> Result<T, FrameError> {
    Ok(serde_json::from_str(text)?)
}

/// Reads a message that was sent compressed.
pub fn read_binary<T: DeserializeOwned>(compressed: &[u8]) -> Result<T, FrameError> {
    read_binary_within(MOST_MESSAGE_BYTES, compressed)
}

/// The same, of so many bytes of JSON at most.
pub fn read_binary_within<T: DeserializeOwned>(most: usize, compressed: &[u8]) -> Result<T, FrameError> {
    let mut text = String::new();
    // One byte more than is allowed tells a message that is too large.
    let decoder = zstd::Decoder::new(compressed).map_err(FrameError::Compression)?;
    decoder.take(most as u64 + 1).read_to_string(&mut text).map_err(FrameError::Compression)?;
    if text.len() > most {
        return Err(FrameError::TooLarge(most));
    }
    read_text(&text)
}

#[allow(clippy::trivially_copy_pass_by_ref)] // What serde asks for.
fn is_false(value: &bool) -> bool {
    !value
}

#[allow(clippy::trivially_copy_pass_by_ref)] // What serde asks for.
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn update(content: &str) -> ToNode {
        let content = RawValue::from_string(content.to_owned()).unwrap();
        let sum = Sum::of(Some(&id("acme")), content.get());
        ToNode::Update(Box::new(Update {
            nonce: 7,
            to: Held { store: Uuid::nil(), revision: 3, sum },
            after: Some(2),
            more: false,
            head: None,
            put: vec![Document { tenant: Some(id("acme")), revision: 3, content }],
            gone: vec![id("globex")],
        }))
    }

    #[test]
    fn a_document_comes_through_to_the_letter() {
        for content in [r#"{ "id": "acme",  "n": 1.0 }"#.to_owned(), format!("[\"{}\"]", "x".repeat(100_000))] {
            let read: ToNode = match write(&update(&content)).unwrap() {
                Frame::Text(text) => read_text(&text).unwrap(),
                Frame::Binary(bytes) => {
                    assert!(bytes.len() < 1000);
                    read_binary(&bytes).unwrap()
                }
            };
            let ToNode::Update(read) = read else { panic!("{read:?}") };
            assert_eq!(read.put[0].content.get(), content);
            assert_eq!(Sum::of(read.put[0].tenant.as_ref(), read.put[0].content.get()), read.to.sum);
        }
    }

    #[test]
    fn what_a_later_release_adds_is_ignored() {
        let text = r#"{"heartbeat":{"revision":1,"ready":true,"draining":false,"mood":"good"}}"#;
        let FromNode::Heartbeat(read) = read_text(text).unwrap() else { panic!() };
        assert_eq!(read, Heartbeat { revision: 1, ready: true, draining: false });
    }

    #[test]
    fn a_node_of_an_earlier_release_takes_no_orders() {
        let text = format!(r#"{{"hello":{{"node":"n1","run":"{}","version":"0.1.0","schemas":[1]}}}}"#, Uuid::nil());
        let FromNode::Hello(read) = read_text(&text).unwrap() else { panic!() };
        assert!(!read.orders);
        // And what it would not expect is not said to it.
        let told = serde_json::to_value(FromNode::Hello(read)).unwrap();
        assert!(told["hello"].get("orders").is_none(), "{told}");
    }

    #[test]
    fn a_message_that_grows_without_end_is_refused() {
        let zeros = vec![b' '; MOST_MESSAGE_BYTES + 1];
        let bomb = zstd::encode_all(&zeros[..], 1).unwrap();
        assert!(bomb.len() < 1 << 20);
        assert!(matches!(read_binary::<ToNode>(&bomb), Err(FrameError::TooLarge(_))));
        assert!(matches!(read_binary::<ToNode>(b"no"), Err(FrameError::Compression(_))));
    }

    proptest! {
        #[test]
        fn the_sum_is_of_the_set_whatever_the_order(contents in prop::collection::vec("[a-z]{0,4}", 0..12)) {
            let parts: Vec<Sum> = contents.iter().map(|content| Sum::of(Some(&id("t")), content)).collect();
            let sum = parts.iter().fold(Sum::default(), |sum, part| sum.with(*part));
            prop_assert_eq!(parts.iter().rev().fold(Sum::default(), |sum, part| sum.with(*part)), sum);
            prop_assert_eq!(parts.iter().fold(sum, |sum, part| sum.without(*part)), Sum::default());
            prop_assert_eq!(sum.to_string().parse::<Sum>().unwrap(), sum);
        }
    }
}
