//! The strict check of a request head in HTTP/1 (RFC 9112), before Pingora parses it.
//!
//! A gateway and its upstreams must agree on where each request ends, or one client's bytes become
//! another's request. So nothing ambiguous gets through: what a lenient parser would mend is refused
//! here, with a reason, and the connection is closed. What passes means the same to every parser.

use std::ops::Range;

use super::{chunked::ChunkScanner, transport::Framing};

/// What a head may measure. See [`seiketsu_config::node::Protection`].
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Bytes, from the first of the request line to the blank line.
    pub bytes: usize,
    pub fields: usize,
}

/// Why a head was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("a line of the request head does not end in CRLF")]
    LineEnding,
    #[error("the request line is not METHOD SP target SP HTTP-version")]
    RequestLine,
    #[error("the method is not a token")]
    Method,
    #[error("the request target holds characters that a URI cannot")]
    Target,
    #[error("the request target is neither a path, nor a URI with the host of the Host field")]
    TargetForm,
    #[error("the HTTP version is not 1.0 or 1.1")]
    Version,
    #[error("a header field name is empty, holds an invalid character, or is followed by white space")]
    FieldName,
    #[error("a header field value holds a control character")]
    FieldValue,
    #[error("a header field is folded over several lines")]
    Folding,
    #[error("Content-Length is not one plain number")]
    ContentLength,
    #[error("both Content-Length and Transfer-Encoding are present")]
    LengthAndEncoding,
    #[error("Transfer-Encoding is repeated, or used with HTTP/1.0")]
    TransferEncoding,
    #[error("the transfer coding is not chunked")]
    TransferCoding,
    #[error("the Host field is missing or repeated, or is not a host")]
    Host,
    #[error("a request to upgrade the connection has a body")]
    UpgradeWithBody,
    #[error("the request line is too long")]
    TargetTooLong,
    #[error("the request head is too large")]
    TooLarge,
    #[error("the request head has too many fields")]
    TooManyFields,
    #[error("CONNECT is not supported")]
    Connect,
}

impl HeadError {
    /// The status that tells the client (RFC 9110 §15, RFC 6585 §5).
    pub fn status(self) -> u16 {
        match self {
            Self::Connect => 405,
            Self::TargetTooLong => 414,
            Self::TooLarge | Self::TooManyFields => 431,
            Self::TransferCoding => 501,
            Self::Version => 505,
            _ => 400,
        }
    }

    /// A short, stable word for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::LineEnding => "line_ending",
            Self::RequestLine => "request_line",
            Self::Method => "method",
            Self::Target => "target",
            Self::TargetForm => "target_form",
            Self::Version => "version",
            Self::FieldName => "field_name",
            Self::FieldValue => "field_value",
            Self::Folding => "folding",
            Self::ContentLength => "content_length",
            Self::LengthAndEncoding => "length_and_encoding",
            Self::TransferEncoding => "transfer_encoding",
            Self::TransferCoding => "transfer_coding",
            Self::Host => "host",
            Self::UpgradeWithBody => "upgrade_with_body",
            Self::TargetTooLong => "target_too_long",
            Self::TooLarge => "too_large",
            Self::TooManyFields => "too_many_fields",
            Self::Connect => "connect",
        }
    }
}

/// A head that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Where it begins: empty lines in front of it are skipped (RFC 9112 §2.2).
    pub start: usize,
    /// Where it ends, behind its blank line.
    pub end: usize,
    pub(crate) framing: Framing,
    /// For an absolute-form target: the bytes of it in front of the path.
    pub authority_form: Option<AbsoluteForm>,
    /// Of the plainest requests: where the host stands, counted from `start`. They are a GET in HTTP/1.1 and origin
    /// form, have no body, and ask for nothing of the connection but that it stays open.
    pub plain_host: Option<Range<usize>>,
}

/// `http://host` in front of the path of an absolute-form target (RFC 9112 §3.2.2). It says the same as
/// the Host field and is cut out, so that everything behind sees origin-form only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AbsoluteForm {
    pub start: usize,
    pub end: usize,
    /// The path is missing and means `/`.
    pub needs_slash: bool,
}

/// Reads a head that may come in pieces; each byte is looked at once.
#[derive(Debug)]
pub struct HeadScanner {
    limits: HeadLimits,
    /// Where the head begins.
    start: usize,
    /// Where the line that is being received begins.
    line: usize,
    /// Up to where there is no line end.
    searched: usize,
    /// The range of the request target, once the request line is there.
    target: Option<Range<usize>>,
    http10: bool,
    options: bool,
    get: bool,
    fields: usize,
    length: Option<u64>,
    chunked: bool,
    host: Option<Range<usize>>,
    /// Fields named `Upgrade`, and whether one of them asks for a WebSocket.
    upgrades: usize,
    websocket: bool,
    connection_upgrade: bool,
    /// A `Connection` field says something else than that it stays open.
    connection_other: bool,
}

/// Empty lines in front of a request line that are tolerated.
const LEADING_LINES: usize = 2;

/// The longest target that [`http::Uri`] holds.
const MAX_TARGET: usize = 65_534;

impl HeadScanner {
    pub fn new(limits: HeadLimits) -> Self {
        Self {
            limits,
            start: 0,
            line: 0,
            searched: 0,
            target: None,
            http10: false,
            options: false,
            get: false,
            fields: 0,
            length: None,
            chunked: false,
            host: None,
            upgrades: 0,
            websocket: false,
            connection_upgrade: false,
            connection_other: false,
        }
    }

    /// Looks at what has arrived so far: all of it from the first byte, at each call.
    /// `Ok(None)` wants more.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<Head>, HeadError> {
        loop {
            let Some(found) = memchr(b'\n', &bytes[self.searched..]) else {
                self.searched = bytes.len();
                self.check_size(bytes.len())?;
                return Ok(None);
            };
            let end = self.searched + found;
            self.check_size(end + 1)?;
            let line = bytes[self.line..end].strip_suffix(b"\r").ok_or(HeadError::LineEnding)?;
            let begin = self.line;
            self.line = end + 1;
            self.searched = end + 1;
            if line.is_empty() {
                if self.target.is_some() {
                    return self.finish(bytes).map(Some);
                }
                if self.line > 2 * LEADING_LINES {
                    return Err(HeadError::RequestLine);
                }
                self.start = self.line;
            } else if self.target.is_none() {
                self.request_line(line, begin)?;
            } else {
                self.field(line, begin)?;
            }
        }
    }

    fn check_size(&self, length: usize) -> Result<(), HeadError> {
        if length - self.start <= self.limits.bytes {
            Ok(())
        } else if self.target.is_none() {
            Err(HeadError::TargetTooLong)
        } else {
            Err(HeadError::TooLarge)
        }
    }

    fn request_line(&mut self, line: &[u8], begin: usize) -> Result<(), HeadError> {
        let first = memchr(b' ', line).ok_or(HeadError::RequestLine)?;
        let (method, rest) = (&line[..first], &line[first + 1..]);
        let second = memchr(b' ', rest).ok_or(HeadError::RequestLine)?;
        let (target, version) = (&rest[..second], &rest[second + 1..]);
        if method.is_empty() || !method.iter().all(|b| is_token(*b)) {
            return Err(HeadError::Method);
        }
        self.http10 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ if version.starts_with(b"HTTP/") => return Err(HeadError::Version),
            _ => return Err(HeadError::RequestLine),
        };
        if method == b"CONNECT" {
            return Err(HeadError::Connect);
        }
        if target.len() > MAX_TARGET {
            return Err(HeadError::TargetTooLong);
        }
        if target.is_empty() || !is_target(target) {
            return Err(HeadError::Target);
        }
        self.options = method == b"OPTIONS";
        self.get = method == b"GET";
        let begin = begin + first + 1;
        self.target = Some(begin..begin + target.len());
        Ok(())
    }

    fn field(&mut self, line: &[u8], begin: usize) -> Result<(), HeadError> {
        if matches!(line[0], b' ' | b'\t') {
            return Err(HeadError::Folding);
        }
        self.fields += 1;
        if self.fields > self.limits.fields {
            return Err(HeadError::TooManyFields);
        }
        let colon = memchr(b':', line).ok_or(HeadError::FieldName)?;
        let (name, raw) = (&line[..colon], &line[colon + 1..]);
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
            return Err(HeadError::FieldName);
        }
        if !all(raw, |b| b == b'\t' || (b >= b' ' && b != 0x7f)) {
            return Err(HeadError::FieldValue);
        }
        // The fields that decide about framing and routing; all others are not looked at here.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                let value = raw.trim_ascii();
                if self.host.is_some() || !is_authority(value) {
                    return Err(HeadError::Host);
                }
                let offset = begin + colon + 1 + (raw.len() - raw.trim_ascii_start().len());
                self.host = Some(offset..offset + value.len());
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrades += 1;
                self.websocket |= raw.trim_ascii().eq_ignore_ascii_case(b"websocket");
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                self.connection_upgrade |= list_has(raw, b"upgrade");
                self.connection_other |= !raw.trim_ascii().eq_ignore_ascii_case(b"keep-alive");
            }
            // With an underscore too: what reads headers as environment variables takes it for the real one.
            14 if is_named(name, b"content-length") => {
                let value = raw.trim_ascii();
                let plain = name[7] == b'-' && (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
                if self.length.is_some() || !plain {
                    return Err(HeadError::ContentLength);
                }
                self.length = Some(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')));
            }
            17 if is_named(name, b"transfer-encoding") => {
                if self.chunked || self.http10 || name[8] != b'-' {
                    return Err(HeadError::TransferEncoding);
                }
                if !raw.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(HeadError::TransferCoding);
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&self, bytes: &[u8]) -> Result<Head, HeadError> {
        if self.length.is_some() && self.chunked {
            return Err(HeadError::LengthAndEncoding);
        }
        if self.host.is_none() && !self.http10 {
            return Err(HeadError::Host);
        }
        // What else asks for an upgrade is served as if it did not (RFC 9110 §7.8): curl does, for HTTP/2.
        let websocket = self.websocket && self.connection_upgrade;
        let upgrade = websocket && self.get && !self.http10 && self.upgrades == 1;
        if websocket && (self.chunked || self.length.is_some_and(|n| n > 0)) {
            return Err(HeadError::UpgradeWithBody);
        }
        let framing = if upgrade {
            Framing::Open
        } else if self.chunked {
            Framing::Chunked(ChunkScanner::default())
        } else {
            Framing::Length(self.length.unwrap_or(0))
        };
        let authority_form = self.target_form(bytes)?;
        let is_plain = self.get
            && !self.http10
            && authority_form.is_none()
            && framing == Framing::Length(0)
            && self.upgrades == 0
            && !self.connection_other;
        let host = self.host.clone().filter(|_| is_plain);
        let plain_host = host.map(|host| host.start - self.start..host.end - self.start);
        Ok(Head { start: self.start, end: self.line, framing, authority_form, plain_host })
    }

    fn target_form(&self, bytes: &[u8]) -> Result<Option<AbsoluteForm>, HeadError> {
        let range = self.target.clone().ok_or(HeadError::RequestLine)?;
        let target = &bytes[range.clone()];
        if target[0] == b'/' || (target == b"*" && self.options) {
            return Ok(None);
        }
        let scheme = [&b"http://"[..], b"https://"]
            .into_iter()
            .find(|scheme| target.len() > scheme.len() && target[..scheme.len()].eq_ignore_ascii_case(scheme))
            .ok_or(HeadError::TargetForm)?;
        let rest = &target[scheme.len()..];
        let authority_length = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
        let authority = &rest[..authority_length];
        // Both must name the same place, or two parsers could take the request for different hosts.
        let same = self.host.clone().is_some_and(|host| same_authority(&bytes[host], authority, scheme == b"https://"));
        if !same {
            return Err(HeadError::TargetForm);
        }
        Ok(Some(AbsoluteForm {
            start: range.start,
            end: range.start + scheme.len() + authority_length,
            needs_slash: rest.get(authority_length) != Some(&b'/'),
        }))
    }
}

/// Whether a target holds nothing that every client has to escape, and that [`http::Uri`] does not take: what is let
/// pass here is never refused by Pingora, which would do so without a word. What browsers send unescaped passes, as in
/// `[`, `|` and, in queries, `` ` ``; the path is normalised later (`tenancy::path`).
///
/// A fragment is for the client alone (RFC 9110 §4.2.5); servers differ on where a path with one ends.
fn is_target(target: &[u8]) -> bool {
    let (path, query) = target.split_at(memchr(b'?', target).unwrap_or(target.len()));
    let visible = |b: u8| matches!(b, b'!'..=b'~') && !matches!(b, b'#' | b'<' | b'>');
    all(path, |b| visible(b) && b != b'`') && all(query, |b| visible(b) && b != b'"')
}

fn same_authority(host: &[u8], authority: &[u8], https: bool) -> bool {
    let default_port: &[u8] = if https { b":443" } else { b":80" };
    let without_port = |text: &'_ [u8]| text.strip_suffix(default_port).map_or(text.len(), <[u8]>::len);
    let (host, authority) = (&host[..without_port(host)], &authority[..without_port(authority)]);
    !authority.is_empty() && host.eq_ignore_ascii_case(authority)
}

/// `host` or `host:port` (RFC 3986 §3.2), without user information.
fn is_authority(value: &[u8]) -> bool {
    let (host, port) = match value.iter().rposition(|b| *b == b':') {
        // The last colon of an IPv6 address is not the port's.
        Some(colon) if !value.ends_with(b"]") => (&value[..colon], &value[colon + 1..]),
        _ => (value, &b""[..]),
    };
    let host_ok = match host.strip_prefix(b"[").and_then(|h| h.strip_suffix(b"]")) {
        Some(address) => {
            address.len() >= 2 && address.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'))
        }
        None => !host.is_empty() && host.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')),
    };
    host_ok && port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

/// Whether a comma-separated list has this member, in any case.
fn list_has(list: &[u8], member: &[u8]) -> bool {
    list.split(|b| *b == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(member))
}

/// Whether this is the field name, in any case, also with `_` for `-`.
fn is_named(name: &[u8], wanted: &[u8]) -> bool {
    name.len() == wanted.len()
        && name.iter().zip(wanted).all(|(n, w)| n.eq_ignore_ascii_case(w) || (*n == b'_' && *w == b'-'))
}

/// `tchar` of RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut b = 0_u8;
        loop {
            table[b as usize] = b.is_ascii_alphanumeric()
                || matches!(
                    b,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                );
            if b == u8::MAX {
                break table;
            }
            b += 1;
        }
    };
    TOKEN[usize::from(byte)]
}

fn memchr(needle: u8, haystack: &[u8]) -> Option<usize> {
    memchr::memchr(needle, haystack)
}

/// Whether all bytes are of a kind. Looks at every one, also behind one that is not: without a way out
/// the compiler compares many at a time.
fn all(bytes: &[u8], is: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |all, byte| all & is(*byte))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 8192, fields: 64 };

    fn scan(head: &str) -> Result<Option<Head>, HeadError> {
        HeadScanner::new(LIMITS).scan(head.as_bytes())
    }

    fn get(fields: &str) -> Result<Option<Head>, HeadError> {
        scan(&format!("GET / HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n"))
    }

    #[test]
    fn a_plain_request_passes_and_has_no_body() {
        let head = get("Accept: */*\r\n").unwrap().unwrap();
        assert_eq!(head.framing, Framing::Length(0));
        assert_eq!((head.start, head.authority_form), (0, None));
    }

    #[test]
    fn framing_is_read_from_the_head() {
        assert_eq!(get("Content-Length: 42\r\n").unwrap().unwrap().framing, Framing::Length(42));
        let chunked = get("transfer-encoding: Chunked\r\n").unwrap().unwrap();
        assert_eq!(chunked.framing, Framing::Chunked(ChunkScanner::default()));
        let upgrade = get("Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n").unwrap().unwrap();
        assert_eq!(upgrade.framing, Framing::Open);
        for no_upgrade in [
            "Upgrade: websocket\r\n",
            "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
        ] {
            assert_eq!(get(no_upgrade).unwrap().unwrap().framing, Framing::Length(0), "{no_upgrade}");
        }
        let with_body = get("Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n").unwrap().unwrap();
        assert_eq!(with_body.framing, Framing::Length(4));
    }

    #[test]
    fn what_parsers_could_understand_differently_is_refused() {
        use HeadError as E;
        let cases = [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", E::LengthAndEncoding),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", E::LengthAndEncoding),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", E::ContentLength),
            ("Content-Length: 5, 5\r\n", E::ContentLength),
            ("Content-Length: +5\r\n", E::ContentLength),
            ("Content-Length: -1\r\n", E::ContentLength),
            ("Content-Length: 0x5\r\n", E::ContentLength),
            ("Content-Length:\r\n", E::ContentLength),
            ("Content-Length: 99999999999999999999\r\n", E::ContentLength),
            ("Content_Length: 5\r\n", E::ContentLength),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", E::TransferEncoding),
            ("Transfer_Encoding: chunked\r\n", E::TransferEncoding),
            ("Transfer-Encoding: gzip, chunked\r\n", E::TransferCoding),
            ("Transfer-Encoding: chunked, identity\r\n", E::TransferCoding),
            ("Transfer-Encoding: \x0bchunked\r\n", E::FieldValue),
            ("Transfer-Encoding : chunked\r\n", E::FieldName),
            (" Folded: yes\r\n", E::Folding),
            ("A: b\r\n\tc\r\n", E::Folding),
            ("A: b\rc\r\n", E::FieldValue),
            ("A: b\nC: d\r\n", E::LineEnding),
            ("A: \0\r\n", E::FieldValue),
            ("A\x7f: b\r\n", E::FieldName),
            (": b\r\n", E::FieldName),
            ("no colon\r\n", E::FieldName),
            ("Host: b.example\r\n", E::Host),
            ("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n", E::UpgradeWithBody),
        ];
        for (fields, expected) in cases {
            assert_eq!(get(fields), Err(expected), "{fields:?}");
        }
    }

    #[test]
    fn request_lines_are_exact() {
        use HeadError as E;
        let cases = [
            ("GET  / HTTP/1.1", E::RequestLine),
            ("GET / HTTP/1.1 ", E::Version),
            ("GET /a b HTTP/1.1", E::RequestLine),
            ("GET /", E::RequestLine),
            ("GET / HTTP/2.0", E::Version),
            ("GET / HTTP/1.10", E::Version),
            ("GET / http/1.1", E::RequestLine),
            ("G(T / HTTP/1.1", E::Method),
            (" / HTTP/1.1", E::Method),
            ("GET /\u{e9} HTTP/1.1", E::Target),
            ("GET /\x01 HTTP/1.1", E::Target),
            ("GET /a#b HTTP/1.1", E::Target),
            ("GET /<a> HTTP/1.1", E::Target),
            ("GET /`a` HTTP/1.1", E::Target),
            ("GET /?a=<b> HTTP/1.1", E::Target),
            ("GET /?a=\"b\" HTTP/1.1", E::Target),
            ("GET a.example/x HTTP/1.1", E::TargetForm),
            ("GET * HTTP/1.1", E::TargetForm),
            ("GET ftp://a.example/ HTTP/1.1", E::TargetForm),
            ("GET http://b.example/ HTTP/1.1", E::TargetForm),
            ("GET http://a.example@b.example/ HTTP/1.1", E::TargetForm),
            ("CONNECT a.example:443 HTTP/1.1", E::Connect),
        ];
        for (line, expected) in cases {
            assert_eq!(scan(&format!("{line}\r\nHost: a.example\r\n\r\n")), Err(expected), "{line:?}");
        }
        assert!(scan("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n").unwrap().is_some());
    }

    #[test]
    fn a_target_that_passes_is_one_for_what_reads_it_next() {
        for byte in b'!'..=b'~' {
            for before in ["/", "/?"] {
                let target = format!("{before}{}", char::from(byte));
                let passes = scan(&format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n")).is_ok();
                let is_uri = target.parse::<http::uri::PathAndQuery>().is_ok();
                assert_eq!(passes, is_uri && byte != b'#', "{target}");
            }
        }
        let limits = HeadLimits { bytes: 1 << 20, ..LIMITS };
        for (length, expected) in [(MAX_TARGET, None), (MAX_TARGET + 1, Some(HeadError::TargetTooLong))] {
            let target = format!("/{}", "a".repeat(length - 1));
            assert_eq!(target.parse::<http::uri::PathAndQuery>().is_ok(), expected.is_none());
            let head = format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n");
            assert_eq!(HeadScanner::new(limits).scan(head.as_bytes()).err(), expected);
        }
    }

    #[test]
    fn an_absolute_target_passes_when_it_names_the_host() {
        let text = "GET HTTP://A.example:80?q HTTP/1.1\r\nHost: a.example\r\n\r\n";
        let form = scan(text).unwrap().unwrap().authority_form.unwrap();
        assert_eq!(&text[form.start..form.end], "HTTP://A.example:80");
        assert!(form.needs_slash);
    }

    #[test]
    fn a_host_is_needed_and_must_be_one() {
        for host in ["a b", "a/b", "user@a", "a:1:2", "[::1", "", "a:123456", "[::1]x"] {
            let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(scan(&head), Err(HeadError::Host), "{host:?}");
        }
        assert_eq!(scan("GET / HTTP/1.1\r\n\r\n"), Err(HeadError::Host));
        for host in ["a", "a:80", "[::1]:8080", "[::1]", "a_b.example", "127.0.0.1:9"] {
            assert!(scan(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap().is_some(), "{host:?}");
        }
        assert!(scan("GET / HTTP/1.0\r\n\r\n").unwrap().is_some());
    }

    #[test]
    fn sizes_are_bounded_while_the_head_is_still_coming() {
        let endless_target = format!("GET /{}", "a".repeat(9000));
        assert_eq!(scan(&endless_target), Err(HeadError::TargetTooLong));
        let endless_field = format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(9000));
        assert_eq!(scan(&endless_field), Err(HeadError::TooLarge));
        assert_eq!(get(&"A: b\r\n".repeat(64)), Err(HeadError::TooManyFields));
    }

    #[test]
    fn a_few_empty_lines_in_front_are_skipped() {
        let head = scan("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().unwrap();
        assert_eq!(head.start, 2);
        assert_eq!(scan("\r\n\r\n\r\nGET / HTTP/1.1\r\n"), Err(HeadError::RequestLine));
    }

    proptest! {
        #[test]
        fn scanning_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = HeadScanner::new(LIMITS).scan(&bytes);
        }

        #[test]
        fn pieces_give_the_same_answer_as_the_whole(
            text in "(GET|POST) (/[a-z]{0,9}|http://a\\.b/) HTTP/1\\.[01]\r\n(Host: a\\.b\r\n)?([A-Z-]{1,9} ?: ?[ -~]{0,9}\r?\n){0,4}(Content-Length: [0-9]{1,3}\r\n)?\r\n.{0,20}",
            cuts in proptest::collection::vec(1_usize..20, 0..40),
        ) {
            let bytes = text.as_bytes();
            let whole = HeadScanner::new(LIMITS).scan(bytes);
            let mut scanner = HeadScanner::new(LIMITS);
            let mut result = Ok(None);
            let mut length = 0;
            for cut in cuts.into_iter().chain(std::iter::repeat(7)) {
                length = (length + cut).min(bytes.len());
                result = scanner.scan(&bytes[..length]);
                if !matches!(result, Ok(None)) || length == bytes.len() {
                    break;
                }
            }
            prop_assert_eq!(result, whole);
        }

        #[test]
        fn what_passes_means_the_same_to_a_second_parser(
            fields in "([A-Za-z_-]{1,14}:[ \t]?[!-~]{0,9}\r\n){0,6}",
        ) {
            let text = format!("POST /x?y HTTP/1.1\r\nHost: a.b\r\n{fields}\r\n");
            if let Ok(Some(head)) = scan(&text) {
                let mut space = [httparse::EMPTY_HEADER; 64];
                let mut request = httparse::Request::new(&mut space);
                let parsed = request.parse(text.as_bytes()).unwrap();
                prop_assert_eq!(parsed, httparse::Status::Complete(head.end));
                prop_assert_eq!(request.path, Some("/x?y"));
            }
        }
    }
}
