//! A browser's way in, on real sockets: the token, the cookie, files, the WebSocket.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockopt, socket, sockopt};

use super::*;
use crate::stream::Stream;
use crate::stream::tests::{client, tls_config};

/// A site with a page, served by the test's own thread.
struct Served {
    web: Web,
    connections: Vec<Connection>,
    viewers: Vec<Stream>,
    novnc: PathBuf,
}

impl Served {
    fn new(test: &str, tls: Option<TlsConfig>) -> Self {
        let novnc = std::env::temp_dir().join(format!("bulkhead-web-{}-{test}", std::process::id()));
        let _ = std::fs::remove_dir_all(&novnc);
        std::fs::create_dir_all(novnc.join("app")).unwrap();
        std::fs::write(novnc.join("vnc.html"), "<html>noVNC</html>").unwrap();
        std::fs::write(novnc.join("app/ui.js"), "x".repeat(700_000)).unwrap();
        let args = Args { novnc: Some(novnc.clone()) };
        let web = Web::open(reserved(), None, tls, &args).unwrap();
        Self { web, connections: Vec::new(), viewers: Vec::new(), novnc }
    }

    fn turn(&mut self, now: Instant) {
        while let Some(connection) = self.web.accept_next(now).unwrap() {
            self.connections.push(connection);
        }
        let (web, viewers) = (&mut self.web, &mut self.viewers);
        self.connections.retain_mut(|connection| match web.turn(connection, now) {
            Turn::Wait | Turn::Again => true,
            Turn::Close => false,
            Turn::Viewer(stream) => {
                viewers.push(stream);
                false
            }
        });
    }

    /// Serves while `browser` does something in a thread of its own.
    fn serve<T: Send>(&mut self, browser: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let browser = scope.spawn(browser);
            while !browser.is_finished() {
                self.turn(Instant::now());
                std::thread::sleep(Duration::from_micros(200));
            }
            browser.join().unwrap()
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.novnc);
    }
}

/// What the supervisor makes: bound, and not listening.
fn reserved() -> OwnedFd {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    socket
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

fn ask(stream: &mut BufReader<impl Read + Write>, request: &str) -> Answer {
    stream.get_mut().write_all(request.as_bytes()).unwrap();
    stream.get_mut().flush().unwrap();
    let mut line = || {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let status = line().split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = Vec::new();
    loop {
        let line = line();
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut answer = Answer { status, headers, body: Vec::new() };
    let len = answer.header("Content-Length").map_or(0, |len| len.parse().unwrap());
    answer.body = vec![0; len];
    stream.read_exact(&mut answer.body).unwrap();
    answer
}

fn connect(address: SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    BufReader::new(stream)
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}\r\n")
}

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Uses the token: the session's path and its cookie.
fn enter(stream: &mut BufReader<impl Read + Write>, token: &str) -> (String, String) {
    let answer = ask(stream, &get(&format!("/?token={token}"), ""));
    assert_eq!(answer.status, 303, "{answer:?}");
    let location = answer.header("Location").unwrap();
    let session = location.split('/').nth(1).unwrap().to_owned();
    assert!(location.starts_with(&format!("/{session}/vnc.html?path={session}/websockify&autoconnect=true")));
    let cookie = answer.header("Set-Cookie").unwrap();
    assert!(cookie.contains(&format!("Path=/{session}/")) && cookie.contains("HttpOnly; SameSite=Lax"));
    (session, format!("Cookie: {}\r\n", cookie.split(';').next().unwrap()))
}

#[test]
fn nobody_can_connect_before_a_token_is_wanted() {
    let mut served = Served::new("closed", None);
    let address = served.web.address;
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(served.web.accept_next(Instant::now()).unwrap().is_none());
    let invitation = served.web.token(Instant::now()).unwrap();
    assert_eq!((invitation.address, invitation.https), (address, false));
    TcpStream::connect(address).unwrap();
    assert!(served.web.accept_next(Instant::now()).unwrap().is_some());
    let unacknowledged = getsockopt(&served.web.listener, sockopt::TcpUserTimeout).unwrap();
    assert_eq!(unacknowledged, 60_000, "who vanishes is missed");
    let again = served.web.token(Instant::now()).unwrap();
    assert!(again.address == address && again.token != invitation.token);
}

#[test]
fn a_token_lets_one_browser_in_to_the_page_and_its_websocket() {
    let mut served = Served::new("in", None);
    let Invitation { token, address, .. } = served.web.token(Instant::now()).unwrap();
    served.serve(|| {
        // Who only asks what there is does not use it up.
        let head = get(&format!("/?token={token}"), "").replace("GET", "HEAD");
        connect(address).get_mut().write_all(head.as_bytes()).unwrap();
        let mut browser = connect(address);
        let (session, cookie) = enter(&mut browser, &token);
        let mut second = connect(address);
        assert_eq!(ask(&mut second, &get(&format!("/?token={token}"), "")).status, 403);
        assert_eq!(second.read(&mut [0; 10]).unwrap(), 0, "and he is let go");
        let page = ask(&mut browser, &get(&format!("/{session}/vnc.html?a=b"), &cookie));
        assert_eq!((page.status, page.body.as_slice()), (200, &b"<html>noVNC</html>"[..]));
        assert_eq!(page.header("X-Frame-Options"), Some("DENY"));
        let script = ask(&mut browser, &get(&format!("/{session}/app/ui.js"), &cookie));
        assert_eq!(
            (script.body.len(), script.header("Content-Type")),
            (700_000, Some("text/javascript; charset=utf-8"))
        );
        assert_eq!(ask(&mut browser, &get(&format!("/{session}/"), &cookie)).status, 303);
        assert_eq!(ask(&mut browser, &get(&format!("/{session}/../etc/passwd"), &cookie)).status, 404);
        // Without the cookie, with another one, or with another path, there is nothing.
        for (path, more) in [
            (format!("/{session}/vnc.html"), String::new()),
            (format!("/{session}/vnc.html"), "Cookie: bulkhead=1.2\r\n".to_owned()),
            (format!("/{}/vnc.html", "0".repeat(32)), cookie.clone()),
            ("/vnc.html".to_owned(), cookie.clone()),
            ("/".to_owned(), cookie.clone()),
            (format!("/{session}/websockify"), UPGRADE.to_owned()),
        ] {
            assert_eq!(ask(&mut connect(address), &get(&path, &more)).status, 403, "{path} {more}");
        }
        let socket = format!("/{session}/websockify");
        let foreign = format!("{UPGRADE}{cookie}Origin: http://evil.example\r\n");
        assert_eq!(ask(&mut browser, &get(&socket, &foreign)).status, 403);
        let own = format!("{UPGRADE}{cookie}Origin: http://127.0.0.1\r\n");
        assert_eq!(ask(&mut browser, &get(&socket, &own)).status, 101);
        let role = tungstenite::protocol::Role::Client;
        let mut websocket = tungstenite::WebSocket::from_raw_socket(browser.into_inner(), role, None);
        websocket.send(tungstenite::Message::Binary(b"RFB 003.008\n".to_vec().into())).unwrap();
    });
    served.turn(Instant::now());
    let mut viewer = served.viewers.pop().unwrap();
    assert!(viewer.is_private() && served.connections.is_empty());
    let mut greeting = [0; 20];
    assert_eq!(viewer.read(&mut greeting).unwrap(), 12);
    assert_eq!(&greeting[..12], b"RFB 003.008\n");
}

#[test]
fn a_websocket_is_where_each_novnc_looks_for_it() {
    let mut served = Served::new("socket", None);
    let Invitation { token, address, .. } = served.web.token(Instant::now()).unwrap();
    let status = |path: &str, more: &str| ask(&mut connect(address), &get(path, more)).status;
    served.serve(|| {
        let (session, cookie) = enter(&mut connect(address), &token);
        let own = format!("{UPGRADE}{cookie}Origin: http://127.0.0.1\r\n");
        assert_eq!(status(&format!("/{session}/websockify"), &own), 101, "up to noVNC 1.5");
        assert_eq!(status(&format!("/{session}/{session}/websockify"), &own), 101, "since noVNC 1.6");
        for elsewhere in ["", "vnc.html", "websockify/x", "xwebsockify"] {
            assert_eq!(status(&format!("/{session}/{elsewhere}"), &own), 403, "{elsewhere}");
        }
        let other = "0".repeat(32);
        assert_eq!(status(&format!("/{other}/{session}/websockify"), &own), 403, "another session's");
    });
    assert_eq!(served.viewers.len(), 2);
}

#[test]
fn the_page_is_encrypted_where_that_is_wanted() {
    let mut served = Served::new("tls", Some(tls_config()));
    let Invitation { token, address, https } = served.web.token(Instant::now()).unwrap();
    assert!(https);
    served.serve(|| {
        let mut browser = BufReader::new(client(TcpStream::connect(address).unwrap()));
        let (session, cookie) = enter(&mut browser, &token);
        let script = ask(&mut browser, &get(&format!("/{session}/app/ui.js"), &cookie));
        assert_eq!(script.body.len(), 700_000);
        let own = format!("{UPGRADE}{cookie}Origin: https://127.0.0.1\r\n");
        assert_eq!(ask(&mut browser, &get(&format!("/{session}/websockify"), &own)).status, 101);
    });
    assert_eq!(served.viewers.len(), 1);
    // Who does not encrypt is answered nothing.
    served.serve(|| {
        let mut plain = TcpStream::connect(address).unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP"));
    });
}

#[test]
fn who_says_nothing_or_nonsense_is_let_go() {
    let mut served = Served::new("slow", None);
    let address = served.web.token(Instant::now()).unwrap().address;
    let silent = TcpStream::connect(address).unwrap();
    let now = Instant::now();
    served.turn(now);
    let deadline = served.connections[0].deadline().unwrap();
    served.turn(deadline);
    assert!(served.connections.is_empty());
    drop(silent);
    served.serve(|| {
        let mut browser = connect(address);
        let answer = ask(&mut browser, "\u{1}\u{2}\r\n\r\n");
        assert_eq!(answer.status, 400);
        assert_eq!(browser.read(&mut [0; 10]).unwrap(), 0, "and that was it");
        let mut browser = connect(address);
        assert_eq!(ask(&mut browser, &format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(20_000))).status, 431);
    });
}

#[test]
fn without_novnc_the_remedy_is_said_when_it_is_wanted() {
    let missing = Args { novnc: Some("/nowhere/novnc".into()) };
    assert!(matches!(Web::open(reserved(), None, None, &missing), Err(OpenError::Files(_))));
    let mut served = Served::new("none", None);
    served.web.site.files = Err(files::Error::NoPage("/usr/share/novnc".into()));
    let why = served.web.token(Instant::now()).unwrap_err();
    assert!(why.contains("sudo apt install novnc"), "{why}");
}
