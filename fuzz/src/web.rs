//! What browsers say to the console's web page.

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;

use bulkhead_console::stream::{Channel, Socket, WebSocket};
use bulkhead_console::web::access::{Access, is_name};
use bulkhead_console::web::http::{self, Answer, LONGEST_HEAD, Parsed, Status};

/// A request, any bytes: it takes no more than there is, an answer has one head, and nobody gets in by guessing.
pub fn web(data: &[u8]) {
    let mut rest = data;
    let Ok(access) = Access::new(None) else { return };
    for is_encrypted in [false, true] {
        match http::parse(rest, is_encrypted) {
            Parsed::Partial => assert!(rest.len() < LONGEST_HEAD),
            Parsed::Bad(status) => head(&Answer::sentence(status, "no", None)),
            Parsed::Whole(request, len) => {
                assert!(0 < len && len <= rest.len() && len <= LONGEST_HEAD);
                assert!(!matches!(http::parse(&rest[..len - 1], is_encrypted), Parsed::Whole(..)));
                let session = request.path.split('/').next().unwrap_or_default();
                assert!(request.cookies.iter().all(|cookie| !access.admits(session, cookie)));
                assert!(!is_name(session) || session.len() == 32);
                let token = http::parameter(&request.query, "token");
                assert!(token.is_none_or(|token| request.query.contains(token)));
                head(&Answer::file(&b"x".as_slice().into(), "text/css", &request));
                head(&Answer::sentence(Status::NotFound, "no", Some(&request)));
                if let Some(upgrade) = &request.upgrade {
                    head(&Answer::upgrade(upgrade));
                }
                rest = &rest[len..];
            }
        }
    }
    websocket(data);
}

/// One head, and nothing that the request has brought ends it early.
fn head(answer: &Answer) {
    let text = String::from_utf8_lossy(&answer.head);
    assert!(text.starts_with("HTTP/1.1 ") && text.find("\r\n\r\n") == Some(text.len() - 4), "{text}");
}

/// The same bytes as a WebSocket's: no more comes out than went in.
fn websocket(data: &[u8]) {
    let Ok((ours, mut theirs)) = UnixStream::pair() else { return };
    if ours.set_nonblocking(true).and(theirs.set_nonblocking(true)).is_err() {
        return;
    }
    let sent = theirs.write(data).unwrap_or(0);
    let mut socket = WebSocket::new(Channel::Plain(Socket::Unix(ours)), Vec::new());
    let (mut got, mut buffer) = (0, [0; 999]);
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => got += len,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
        assert!(got <= sent);
    }
    let _ = socket.flush();
}
