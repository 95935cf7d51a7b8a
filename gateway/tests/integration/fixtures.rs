//! What several subjects need: tenants in few words, an upstream that answers as a test says, an issuer
//! of tokens, and a reader that takes broken answers as they are.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::support::{Client, Gateway, Origin, PATIENCE, Response};

/// One tenant, `acme.test`, open to everyone. `upstreams` are lines of the file's `upstreams`, `tenant`
/// lines of the tenant, `routes` lines of its routes.
pub fn tenants(upstreams: &str, tenant: &str, routes: &str) -> String {
    let (upstreams, tenant, routes) = (indented(upstreams), indented(tenant), indented(routes));
    format!(
        "revision: 1\ndefaults: {{ auth: {{ accept: [anonymous] }} }}\nupstreams:\n{upstreams}tenants:\n\
         - id: acme\n  hosts: [acme.test]\n{tenant}  routes:\n{routes}"
    )
}

fn indented(lines: &str) -> String {
    let lines = lines.lines().filter(|line| !line.trim().is_empty());
    lines.fold(String::new(), |mut text, line| {
        writeln!(text, "  {line}").unwrap();
        text
    })
}

/// An upstream `demo` with these endpoints; `more` are further keys in flow style.
pub fn demo(endpoints: &[SocketAddr], more: &str) -> String {
    upstream("demo", endpoints, more)
}

pub fn upstream(name: &str, endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|address| format!("{{ address: '{address}' }}")).collect();
    let more = if more.is_empty() { String::new() } else { format!(", {more}") };
    format!("{name}: {{ endpoints: [{}]{more} }}\n", endpoints.join(", "))
}

/// The route `/v1/{*rest}` to `demo`, with these policies.
pub fn open(policies: &str) -> String {
    format!("- {{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo, policies: {{ {policies} }} }}\n")
}

/// A gateway in front of one origin, with one open route that has these policies.
pub fn with_policies(origin: SocketAddr, policies: &str) -> Gateway {
    Gateway::start(&tenants(&demo(&[origin], ""), "", &open(policies)))
}

impl Gateway {
    /// Any request to `acme.test` on a connection of its own.
    pub fn ask(&self, method: &str, target: &str, fields: &str, body: &str) -> Response {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let request = format!("{method} {target} HTTP/1.1\r\nHost: acme.test\r\n{fields}{length}\r\n{body}");
        let mut client = self.connect();
        client.send(request.as_bytes());
        if method == "HEAD" { client.receive_head() } else { client.receive().expect("an answer") }
    }

    pub fn post_json(&self, target: &str, body: &str) -> Response {
        self.ask("POST", target, "Content-Type: application/json\r\n", body)
    }

    pub fn operations(&self, target: &str) -> Response {
        Client::connect(self.operations).request(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    pub fn metrics(&self) -> String {
        self.operations("/metrics").text()
    }

    /// The value of a metric; `series` with its labels. 0 while there is none.
    pub fn metric(&self, series: &str) -> f64 {
        let metrics = self.metrics();
        let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        value.unwrap_or(0.0)
    }

    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }

    /// All bytes until the other side closes, of an answer that may be broken.
    pub fn raw(&self, request: &str) -> Vec<u8> {
        let mut client = self.connect();
        client.send(request.as_bytes());
        let mut all = Vec::new();
        // A reset after the last byte is an end too.
        let _ = client.stream.read_to_end(&mut all);
        all
    }
}

impl Client {
    /// A response without its body, as the answer to HEAD.
    pub fn receive_head(&mut self) -> Response {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            assert!(self.stream.read_line(&mut line).unwrap() > 0, "{head}");
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Response { status, head, body: Vec::new() }
    }
}

impl Response {
    /// All values of a field.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    /// A field of the request that the demo origin echoed.
    pub fn echoed(&self, name: &str) -> Option<String> {
        let json = self.json();
        let pairs = json["headers"].as_array().unwrap();
        pairs.iter().find(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap().to_owned())
    }

    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        self.json()["type"].as_str().unwrap().rsplit([':', '#']).next().unwrap().to_owned()
    }
}

impl Origin {
    pub fn control(&self, switch: &str, body: &Value) {
        let body = body.to_string();
        let answer = Client::connect(self.address).request(&format!(
            "POST /control/{switch} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    pub fn behave(&self, behaviour: &Value) {
        self.control("behaviour", behaviour);
    }

    pub fn requests(&self, path: &str) -> u64 {
        let stats = Client::connect(self.address).request("GET /control/stats HTTP/1.1\r\nHost: x\r\n\r\n");
        stats.json()["requests"][path].as_u64().unwrap_or(0)
    }
}

/// A request as an upstream saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which connection it came on.
    pub connection: usize,
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (have, value) = line.split_once(':')?;
            have.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// An upstream that answers as the test says, byte by byte, and remembers what it was asked.
pub struct Stub {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Stub {
    pub fn start(answer: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || serve(connection, &stream.unwrap(), &log, &*answer));
            }
        });
        Self { address, seen }
    }

    /// Answers everything with 200, these fields and this body.
    pub fn answering(fields: &'static str, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self::start(move |_| ok(fields, &body))
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

pub fn ok(fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn serve(connection: usize, stream: &TcpStream, log: &Mutex<Vec<Seen>>, answer: &dyn Fn(&Seen) -> Vec<u8>) {
    let mut reader = BufReader::new(stream);
    while let Some(seen) = read_request(connection, &mut reader) {
        log.lock().unwrap().push(seen.clone());
        let is_head = seen.head.starts_with("HEAD ");
        let mut bytes = answer(&seen);
        if is_head {
            let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
            bytes.truncate(end);
        }
        let mut to = stream;
        if bytes.is_empty() || to.write_all(&bytes).is_err() {
            return;
        }
    }
}

pub fn read_request(connection: usize, reader: &mut BufReader<&TcpStream>) -> Option<Seen> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
        if head[before..] == *"\r\n" {
            break;
        }
    }
    let mut seen = Seen { connection, head, body: Vec::new() };
    if seen.header("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut piece = vec![0; size + 2];
            reader.read_exact(&mut piece).ok()?;
            if size == 0 {
                break;
            }
            seen.body.extend_from_slice(&piece[..size]);
        }
    } else if let Some(length) = seen.header("content-length") {
        seen.body = vec![0; length.parse().ok()?];
        reader.read_exact(&mut seen.body).ok()?;
    }
    Some(seen)
}

/// Signs tokens with a P-256 key.
pub struct Issuer {
    key: EcdsaKeyPair,
    kid: &'static str,
}

impl Issuer {
    pub fn new(kid: &'static str) -> Self {
        Self { key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(), kid }
    }

    pub fn jwk(&self) -> Value {
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.kid,
            "x": encode(x), "y": encode(y),
        })
    }

    pub fn jwks(&self) -> String {
        json!({ "keys": [self.jwk()] }).to_string()
    }

    /// A token that `acme.test` accepts, with these claims changed; `null` removes one.
    pub fn token(&self, changes: &Value) -> String {
        self.signed(&json!({ "alg": "ES256", "typ": "JWT", "kid": self.kid }), &claims(changes))
    }

    pub fn signed(&self, header: &Value, claims: &Value) -> String {
        let message = unsigned(header, claims);
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", encode(signature.as_ref()))
    }
}

pub fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "iss": "https://login.test", "aud": "api", "sub": "alice", "exp": now() + 600, "iat": now(),
        "scope": "read", "roles": ["agent"],
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

/// Header and claims of a token, encoded.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()))
}

pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The claims of a token that one of these keys has signed with ES256.
pub fn verified(token: &str, jwks: &Value) -> Value {
    let (message, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let part = |index| -> Value {
        let bytes = URL_SAFE_NO_PAD.decode(message.split('.').nth(index).unwrap()).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    let header = part(0);
    let key = jwks["keys"].as_array().unwrap().iter().find(|key| key["kid"] == header["kid"]).expect("its key");
    let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap();
    let point = [vec![4], coordinate("x"), coordinate("y")].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message.as_bytes(), &signature).expect("its word");
    part(1)
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// `sha256:…`, as the configuration has it.
pub fn key_hash(key: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    digest.as_ref().iter().fold("sha256:".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Whether something becomes true.
pub fn comes_true(question: impl Fn() -> bool) -> bool {
    crate::support::wait_for(&|| question().then_some(())).is_some()
}

/// Lets the clock go on by at least this much, where time itself is what is tested.
pub fn let_pass(time: Duration) {
    assert!(time < PATIENCE);
    let until = std::time::Instant::now() + time;
    assert!(comes_true(|| std::time::Instant::now() >= until));
}
