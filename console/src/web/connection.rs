//! One browser's connection: requests and answers, one after the other, until it becomes a WebSocket or is over.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::Site;
use super::access::COOKIE;
use super::files::PAGE;
use super::http::{self, Answer, LONGEST_HEAD, Parsed, Request, Status};
use crate::stream::{Channel, Socket, Stream, Tls, TlsConfig, WebSocket};

/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// And how long an answer may take to go: the longest one is a few hundred kilobytes.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// What is read and written in a turn, at most: others have theirs.
const ONE_TURN: usize = 256 * 1024;
/// What is read at once.
const ONE_READ: usize = 4096;
/// Where the WebSocket of a session is. Any path of the session's that ends so is it: the path in [`page`] is the site's to an older noVNC, and
/// relative to the page's own since 1.6, which makes `SESSION/SESSION/websockify` of it.
const SOCKET: &str = "websockify";

const ASK_AGAIN: &str = "This address is not good any more, or never was: each is for one browser and for a minute. Another one: bulkhead console VM --web";

/// What is to be done about a connection.
#[derive(Debug)]
pub enum Turn {
    /// Nothing, until something happens to its socket.
    Wait,
    /// It has more to do at once.
    Again,
    /// It is over.
    Close,
    /// It is a viewer's from now on.
    Viewer(Stream),
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// `None`: it has become a viewer's.
    channel: Option<Channel>,
    fd: RawFd,
    is_encrypted: bool,
    /// It has shown a token or a cookie.
    is_admitted: bool,
    /// What has come and is not dealt with.
    input: Vec<u8>,
    output: Option<Output>,
    deadline: Instant,
}

/// An answer under way.
#[derive(Debug)]
struct Output {
    answer: Answer,
    sent: usize,
    then: Then,
}

/// What follows an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The next request.
    Next,
    /// The end.
    Close,
    /// A WebSocket.
    Upgrade,
}

impl Connection {
    /// One that has just been made; non-blocking.
    pub fn new(stream: TcpStream, tls: Option<&TlsConfig>, now: Instant) -> io::Result<Self> {
        let fd = stream.as_raw_fd();
        let socket = Socket::Tcp(stream);
        let channel = match tls {
            Some(tls) => Channel::Tls(Box::new(Tls::new(socket, tls, &[])?)),
            None => Channel::Plain(socket),
        };
        Ok(Self {
            channel: Some(channel),
            fd,
            is_encrypted: tls.is_some(),
            is_admitted: false,
            input: Vec::new(),
            output: None,
            deadline: now + PATIENCE,
        })
    }

    /// When it is over for lack of activity; look by a turn.
    pub fn deadline(&self) -> Option<Instant> {
        Some(self.deadline)
    }

    /// Whether it is the connection of somebody who has been let in.
    pub fn is_admitted(&self) -> bool {
        self.is_admitted
    }

    /// Reads and writes until the socket does no more.
    pub(super) fn turn(&mut self, site: &mut Site, now: Instant) -> Turn {
        let mut room = ONE_TURN;
        loop {
            if now >= self.deadline {
                return Turn::Close;
            }
            if self.output.is_some() {
                match self.send(&mut room) {
                    Ok(Some(Then::Next)) => self.deadline = now + PATIENCE,
                    Ok(Some(Then::Close)) => return Turn::Close,
                    Ok(Some(Then::Upgrade)) => return self.upgraded(),
                    Ok(None) => return if room == 0 { Turn::Again } else { Turn::Wait },
                    Err(_) => return Turn::Close,
                }
            }
            match http::parse(&self.input, self.is_encrypted) {
                Parsed::Whole(request, len) => {
                    self.input.drain(..len);
                    let admitted = answer(&request, site, now, self.is_encrypted);
                    self.is_admitted |= admitted.is_some();
                    let (answer, then) = admitted.unwrap_or_else(|| forbidden(&request));
                    self.output = Some(Output { answer, sent: 0, then });
                    self.deadline = now + ANSWER_PATIENCE;
                    continue;
                }
                Parsed::Bad(status) => {
                    let answer = Answer::sentence(status, "This is no request that is answered here.", None);
                    self.output = Some(Output { answer, sent: 0, then: Then::Close });
                    continue;
                }
                Parsed::Partial => {}
            }
            match self.receive(&mut room) {
                Ok(0) => return Turn::Close,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return if room == 0 { Turn::Again } else { Turn::Wait };
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Turn::Close,
            }
        }
    }

    fn receive(&mut self, room: &mut usize) -> io::Result<usize> {
        if *room == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let Some(channel) = &mut self.channel else { return Ok(0) };
        let mut buffer = [0; ONE_READ];
        let wanted = ONE_READ.min(LONGEST_HEAD.saturating_sub(self.input.len()).max(1));
        let taken = channel.read(&mut buffer[..wanted])?;
        self.input.extend_from_slice(&buffer[..taken]);
        *room = room.saturating_sub(taken.max(1));
        Ok(taken)
    }

    /// Sends of the answer what the socket takes; once all of it is sent, what follows it.
    fn send(&mut self, room: &mut usize) -> io::Result<Option<Then>> {
        let (Some(channel), Some(output)) = (&mut self.channel, &mut self.output) else { return Ok(None) };
        let Output { answer, sent, then } = output;
        loop {
            let left = match answer.head.get(*sent..) {
                Some(head) if !head.is_empty() => head,
                _ => answer.body.get(*sent - answer.head.len()..).unwrap_or_default(),
            };
            let step = if left.is_empty() {
                channel.flush().map(|()| 0)
            } else {
                channel.write(&left[..left.len().min(*room)])
            };
            match step {
                Ok(_) if left.is_empty() => {
                    let then = *then;
                    self.output = None;
                    return Ok(Some(then));
                }
                Ok(0) => return if *room == 0 { Ok(None) } else { Err(ErrorKind::WriteZero.into()) },
                Ok(taken) => {
                    *sent += taken;
                    *room -= taken;
                    if *room == 0 {
                        return Ok(None);
                    }
                }
                // While it is encrypted, a handshake may have to be read first.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn upgraded(&mut self) -> Turn {
        let unread = std::mem::take(&mut self.input);
        match self.channel.take() {
            Some(channel) => Turn::Viewer(Stream::WebSocket(Box::new(WebSocket::new(channel, unread)))),
            None => Turn::Close,
        }
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

/// Who may not come in does not stay at the door either: there are only so many places.
fn forbidden(request: &Request) -> (Answer, Then) {
    let last = Request { keep_alive: false, ..request.clone() };
    (Answer::sentence(Status::Forbidden, ASK_AGAIN, Some(&last)), Then::Close)
}

/// What somebody is answered; `None`: he may not come in.
fn answer(request: &Request, site: &mut Site, now: Instant, is_encrypted: bool) -> Option<(Answer, Then)> {
    let then = if request.keep_alive { Then::Next } else { Then::Close };
    let token = http::parameter(&request.query, "token").filter(|_| request.wants_body);
    if let ("", Some(token), None) = (request.path.as_str(), token, &request.upgrade) {
        let session = site.access.enter(token, now)?;
        let name = &session.name;
        let secure = if is_encrypted { "; Secure" } else { "" };
        let (cookie, seconds) = (&session.cookie, session.seconds);
        let cookie =
            format!("{COOKIE}={cookie}; Path=/{name}/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
        return Some((Answer::redirect(&page(name), Some(&cookie), request), then));
    }
    let (session, path) = request.path.split_once('/').unwrap_or((&request.path, ""));
    if !request.cookies.iter().any(|cookie| site.access.admits(session, cookie)) {
        return None;
    }
    let admitted = match (&request.upgrade, path, &site.files) {
        (Some(upgrade), path, _) if upgrade.is_own && is_socket(path) => {
            (Answer::upgrade(upgrade), Then::Upgrade)
        }
        (Some(_), ..) => {
            (Answer::sentence(Status::Forbidden, "There is no WebSocket for you here.", Some(request)), then)
        }
        (None, "", _) => (Answer::redirect(&page(session), None, request), then),
        (None, path, files) => match files.as_ref().ok().and_then(|files| files.get(path)) {
            Some(file) => (Answer::file(&file.bytes, file.kind, request), then),
            None => (Answer::sentence(Status::NotFound, "There is no such file.", Some(request)), then),
        },
    };
    Some(admitted)
}

fn is_socket(path: &str) -> bool {
    path.rsplit('/').next() == Some(SOCKET)
}

/// noVNC's page, which is to connect by itself, and again whenever the connection is lost.
fn page(session: &str) -> String {
    format!(
        "/{session}/{PAGE}?path={session}/{SOCKET}&autoconnect=true&reconnect=true&reconnect_delay=500&resize=scale"
    )
}
