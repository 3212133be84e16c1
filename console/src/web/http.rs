//! Requests and answers of HTTP/1.1, as far as a browser needs them for files and a WebSocket. Pure.

use std::fmt::Write as _;

use tungstenite::handshake::derive_accept_key;

use super::Body;
use super::access::COOKIE;

/// Longest head of a request, in bytes. Browsers send less than a kilobyte, and other servers' cookies at the same address.
pub const LONGEST_HEAD: usize = 16 * 1024;
/// Header lines of a request.
const MOST_HEADERS: usize = 64;

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whether the file itself is wanted, or only what is known of it (HEAD).
    pub wants_body: bool,
    /// The path, without the first slash; not decoded, since no path here needs that.
    pub path: String,
    /// What is behind the question mark.
    pub query: String,
    /// The values of our cookie: several have come if paths of sessions lie in each other, which ours do not.
    pub cookies: Vec<String>,
    /// Set if it is to become a WebSocket.
    pub upgrade: Option<Upgrade>,
    /// Whether more requests may follow on the same connection.
    pub keep_alive: bool,
}

/// The head of a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// The answer to the client's key.
    pub accept: String,
    /// A page of this very site wants it, or no page at all: a browser says which.
    pub is_own: bool,
    /// The client speaks the protocol `binary`, as older ones of noVNC do, and has to be answered so.
    pub is_binary: bool,
}

/// What has come so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not all of it.
    Partial,
    /// A request, and how many bytes it took.
    Whole(Box<Request>, usize),
    /// No request that we answer: with this status.
    Bad(Status),
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the standard's")]
pub enum Status {
    SwitchingProtocols,
    Ok,
    SeeOther,
    BadRequest,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    HeaderFieldsTooLarge,
}

impl Status {
    fn text(self) -> &'static str {
        match self {
            Status::SwitchingProtocols => "101 Switching Protocols",
            Status::Ok => "200 OK",
            Status::SeeOther => "303 See Other",
            Status::BadRequest => "400 Bad Request",
            Status::Forbidden => "403 Forbidden",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::HeaderFieldsTooLarge => "431 Request Header Fields Too Large",
        }
    }
}

/// Reads a request. `is_encrypted`: pages of this site begin with `https:`.
pub fn parse(bytes: &[u8], is_encrypted: bool) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= LONGEST_HEAD => len,
        Ok(httparse::Status::Partial) if bytes.len() < LONGEST_HEAD => return Parsed::Partial,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Parsed::Bad(Status::HeaderFieldsTooLarge),
        Err(_) => return Parsed::Bad(Status::BadRequest),
    };
    match understand(&request, is_encrypted) {
        Ok(request) => Parsed::Whole(Box::new(request), len),
        Err(status) => Parsed::Bad(status),
    }
}

fn understand(request: &httparse::Request<'_, '_>, is_encrypted: bool) -> Result<Request, Status> {
    let values = |name: &'static str| {
        let is_it = move |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case(name);
        request.headers.iter().filter(is_it).map(|header| header.value.trim_ascii())
    };
    // One word of a list with commas.
    let lists = |name, word: &str| {
        values(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
    };
    let wants_body = match request.method {
        Some("GET") => true,
        Some("HEAD") => false,
        _ => return Err(Status::MethodNotAllowed),
    };
    // What came behind the head would be taken for the next request.
    let has_body =
        values("content-length").any(|length| length != b"0") || values("transfer-encoding").next().is_some();
    let target = request.path.and_then(|path| path.strip_prefix('/')).filter(|_| !has_body);
    let (path, query) =
        target.map(|target| target.split_once('?').unwrap_or((target, ""))).ok_or(Status::BadRequest)?;
    let is_old = request.version == Some(0);
    let upgrade = match lists("upgrade", "websocket") && lists("connection", "upgrade") {
        true if is_old || !wants_body => return Err(Status::BadRequest),
        true => {
            let (mut keys, mut versions) = (values("sec-websocket-key"), values("sec-websocket-version"));
            let (Some(key), None, Some(b"13"), None) =
                (keys.next(), keys.next(), versions.next(), versions.next())
            else {
                return Err(Status::BadRequest);
            };
            Some(Upgrade {
                accept: derive_accept_key(key),
                is_own: is_own(values("origin"), values("host"), is_encrypted),
                is_binary: lists("sec-websocket-protocol", "binary"),
            })
        }
        false => None,
    };
    let cookies = values("cookie").filter_map(|value| std::str::from_utf8(value).ok());
    let cookies = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    Ok(Request {
        wants_body,
        path: path.to_owned(),
        query: query.to_owned(),
        cookies: cookies.filter(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned()).collect(),
        upgrade,
        keep_alive: !is_old && !lists("connection", "close"),
    })
}

/// A page that comes from elsewhere says so in `Origin`.
fn is_own<'a>(
    mut origins: impl Iterator<Item = &'a [u8]>,
    mut hosts: impl Iterator<Item = &'a [u8]>,
    is_encrypted: bool,
) -> bool {
    let scheme: &[u8] = if is_encrypted { b"https://" } else { b"http://" };
    match (origins.next(), origins.next(), hosts.next(), hosts.next()) {
        (None, None, ..) => true,
        (Some(origin), None, Some(host), None) => origin.strip_prefix(scheme) == Some(host),
        _ => false,
    }
}

/// The value of a parameter in a query. Ours have no characters that are written in another way there.
pub fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(found, _)| *found == name))
        .map(|(_, value)| value)
}

/// An answer: its head, and what follows.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The head, to be sent first.
    pub head: Vec<u8>,
    /// The body.
    pub body: Body,
}

impl Answer {
    /// A file.
    pub fn file(bytes: &Body, kind: &str, request: &Request) -> Self {
        let mut head = begin(Status::Ok, request.keep_alive);
        // It cannot change under its path, which is the session's.
        let _ = write!(head, "Content-Type: {kind}\r\nCache-Control: private, max-age=3600\r\n");
        Self::with(head, bytes.clone(), request.wants_body)
    }

    /// One sentence for a person.
    pub fn sentence(status: Status, text: &str, request: Option<&Request>) -> Self {
        let mut head = begin(status, request.is_some_and(|request| request.keep_alive));
        head.push_str("Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n");
        if status == Status::MethodNotAllowed {
            head.push_str("Allow: GET, HEAD\r\n");
        }
        let wants_body = request.is_none_or(|request| request.wants_body);
        Self::with(head, format!("{text}\n").into_bytes().into(), wants_body)
    }

    /// Goes on elsewhere, with a cookie.
    pub fn redirect(to: &str, cookie: Option<&str>, request: &Request) -> Self {
        let mut head = begin(Status::SeeOther, request.keep_alive);
        let _ = write!(head, "Location: {to}\r\nCache-Control: no-store\r\n");
        if let Some(cookie) = cookie {
            let _ = write!(head, "Set-Cookie: {cookie}\r\n");
        }
        Self::with(head, Vec::new().into(), false)
    }

    /// The connection is a WebSocket from now on.
    pub fn upgrade(upgrade: &Upgrade) -> Self {
        let status = Status::SwitchingProtocols.text();
        let mut head = format!("HTTP/1.1 {status}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
        let _ = write!(head, "Sec-WebSocket-Accept: {}\r\n", upgrade.accept);
        if upgrade.is_binary {
            head.push_str("Sec-WebSocket-Protocol: binary\r\n");
        }
        head.push_str("\r\n");
        Self { head: head.into_bytes(), body: Vec::new().into() }
    }

    fn with(mut head: String, body: Body, wants_body: bool) -> Self {
        let _ = write!(head, "Content-Length: {}\r\n\r\n", body.len());
        Self { head: head.into_bytes(), body: if wants_body { body } else { Vec::new().into() } }
    }
}

/// What every answer says: nobody may show it in a page of his own, guess at its kind, or be told of the address that led here.
fn begin(status: Status, keep_alive: bool) -> String {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    format!(
        "HTTP/1.1 {}\r\nConnection: {connection}\r\nX-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n\
         Content-Security-Policy: frame-ancestors 'none'\r\nReferrer-Policy: no-referrer\r\n",
        status.text()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Request {
        match parse(text.as_bytes(), false) {
            Parsed::Whole(request, len) => {
                assert_eq!(len, text.len());
                *request
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_browsers_request_is_understood() {
        let request = whole(
            "GET /ab/vnc.html?path=x&y=1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\nCookie: a=b; bulkhead=1.c; x=\r\n\r\n",
        );
        assert_eq!((request.path.as_str(), request.query.as_str()), ("ab/vnc.html", "path=x&y=1"));
        assert_eq!(request.cookies, ["1.c"]);
        assert!(request.wants_body && request.keep_alive && request.upgrade.is_none());
        assert_eq!((parameter(&request.query, "y"), parameter(&request.query, "z")), (Some("1"), None));
        let request = whole("HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n");
        assert!(!request.wants_body && !request.keep_alive && request.path.is_empty());
        assert!(!whole("GET / HTTP/1.0\r\n\r\n").keep_alive);
    }

    const KEY: &str = "Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    #[test]
    fn a_websocket_of_our_own_page_is_told_from_others() {
        let upgrade = |more: &str, is_encrypted| match parse(
            format!("GET /s/websockify HTTP/1.1\r\nHost: h:1\r\n{KEY}{more}\r\n").as_bytes(),
            is_encrypted,
        ) {
            Parsed::Whole(request, _) => request.upgrade.unwrap(),
            other => panic!("{other:?}"),
        };
        // The example of RFC 6455, section 1.3.
        assert_eq!(upgrade("", false).accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(upgrade("", false).is_own && upgrade("Origin: http://h:1\r\n", false).is_own);
        assert!(upgrade("Origin: https://h:1\r\n", true).is_own);
        for other in ["http://evil", "http://h:2", "https://h:1", "null", "", "http://h:1/"] {
            assert!(!upgrade(&format!("Origin: {other}\r\n"), false).is_own, "{other}");
        }
        assert!(!upgrade("Origin: http://h:1\r\nOrigin: http://evil\r\n", false).is_own);
        assert!(upgrade("Sec-WebSocket-Protocol: base64, binary\r\n", false).is_binary);
    }

    #[test]
    fn what_is_no_request_of_a_browser_is_refused() {
        for (text, status) in [
            ("POST / HTTP/1.1\r\n\r\n", Status::MethodNotAllowed),
            ("GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", Status::BadRequest),
            ("GET http://x/ HTTP/1.1\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/9\r\n\r\n", Status::BadRequest),
            ("\u{1}\u{2}", Status::BadRequest),
            ("GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", Status::BadRequest),
        ] {
            assert_eq!(parse(text.as_bytes(), false), Parsed::Bad(status), "{text}");
        }
        let old = format!("GET / HTTP/1.1\r\n{}\r\n", KEY.replace("13", "8"));
        assert_eq!(parse(old.as_bytes(), false), Parsed::Bad(Status::BadRequest));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
        assert_eq!(parse(many.as_bytes(), false), Parsed::Bad(Status::HeaderFieldsTooLarge));
        let long = format!("GET /{}", "a".repeat(LONGEST_HEAD));
        assert_eq!(parse(long.as_bytes(), false), Parsed::Bad(Status::HeaderFieldsTooLarge));
        assert_eq!(parse(b"GET / HT", false), Parsed::Partial);
        assert_eq!(parse(b"", false), Parsed::Partial);
    }

    #[test]
    fn an_answer_says_how_long_it_is() {
        let request = whole("GET / HTTP/1.1\r\n\r\n");
        let answer = Answer::file(&b"12345".as_slice().into(), "text/css", &request);
        let head = String::from_utf8(answer.head).unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("Content-Length: 5\r\n\r\n"),
            "{head}"
        );
        assert_eq!(&answer.body[..], b"12345");
        let head_only = whole("HEAD / HTTP/1.1\r\n\r\n");
        let answer = Answer::file(&b"12345".as_slice().into(), "text/css", &head_only);
        assert!(answer.head.ends_with(b"Content-Length: 5\r\n\r\n") && answer.body.is_empty());
    }
}
