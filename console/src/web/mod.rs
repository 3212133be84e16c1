//! The web page: noVNC as it is, and the WebSocket through which it speaks RFB.
//!
//! Everything is read into memory before the door closes. Nobody is let in without a cookie, and a cookie is had for a token that
//! `bulkhead console --web` prints, once. Until the first token is wanted nobody can even connect: the socket has a port by then, and does not
//! listen.
//!
//! * [`access`]: tokens and cookies; [`files`]: noVNC; [`http`]: requests and answers, pure
//! * [`connection`]: one browser's connection, a state machine
//!
//! It must never look into RFB, never wait, and never show anything to whoever has no cookie but one sentence.

pub mod access;
pub mod connection;
pub mod files;
pub mod http;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{Backlog, listen};
use serde::Serialize;

use self::access::Access;
use self::files::Files;
use crate::listener::notice_absence;
use crate::stream::TlsConfig;

pub use self::connection::{Connection, Turn};

/// Where Debian's package `novnc` is.
const NOVNC: &str = "/usr/share/novnc";
/// Connections that wait until we take them.
const BACKLOG: i32 = 64;

/// Options of the web page.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(id = "web")]
#[group(skip)]
pub struct Args {
    /// noVNC's directory, the one with vnc.html [default: /usr/share/novnc]
    #[arg(long, value_name = "DIR")]
    pub novnc: Option<PathBuf>,
}

/// Why there is no web page. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// What was given as its socket.
    #[error("the web page's socket: {0}")]
    Socket(io::Error),
    /// What was given as its secret.
    #[error("the web page's secret: {0}")]
    Secret(io::Error),
    /// noVNC's files, where it was named.
    #[error("noVNC: {0}")]
    Files(#[from] files::Error),
}

/// What lets somebody in, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Invitation {
    /// Letters and digits.
    pub token: String,
    /// Where.
    pub address: SocketAddr,
    /// Whether it is encrypted.
    pub https: bool,
}

/// What all connections share.
#[derive(Debug)]
pub struct Site {
    files: Result<Files, files::Error>,
    access: Access,
    tls: Option<TlsConfig>,
}

/// The web page.
#[derive(Debug)]
pub struct Web {
    listener: TcpListener,
    address: SocketAddr,
    site: Site,
}

impl Web {
    /// Reads noVNC into memory. `secret` outlives this process, so that cookies do.
    pub fn open(
        socket: OwnedFd,
        secret: Option<OwnedFd>,
        tls: Option<TlsConfig>,
        args: &Args,
    ) -> Result<Self, OpenError> {
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().map_err(OpenError::Socket)?;
        listener.set_nonblocking(true).map_err(OpenError::Socket)?;
        notice_absence(&listener).map_err(OpenError::Socket)?;
        let files = match &args.novnc {
            Some(directory) => Ok(Files::read(directory)?),
            // Nobody has asked for it: that it is missing is said when somebody does.
            None => Files::read(NOVNC.as_ref()),
        };
        let access = Access::new(secret).map_err(OpenError::Secret)?;
        Ok(Self { listener, address, site: Site { files, access, tls } })
    }

    /// To be watched; and to be kept when the door closes.
    pub fn listener(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// The next one who has connected.
    ///
    /// # Errors
    /// There are no descriptors left, or the like.
    pub fn accept_next(&mut self, now: Instant) -> io::Result<Option<Connection>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                // Keys are small, and so are the frames in which they travel.
                stream.set_nodelay(true)?;
                Ok(Some(Connection::new(stream, self.site.tls.as_ref(), now)?))
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                // It does not listen yet.
                Some(Errno::EINVAL | Errno::EAGAIN) => Ok(None),
                // Whoever it was is gone.
                Some(Errno::ECONNABORTED | Errno::EINTR) => self.accept_next(now),
                _ => Err(error),
            },
        }
    }

    /// Goes on with a connection that something may have happened to.
    pub fn turn(&mut self, connection: &mut Connection, now: Instant) -> Turn {
        connection.turn(&mut self.site, now)
    }

    /// Lets one more browser in. From the first one on, connections are taken.
    ///
    /// # Errors
    /// One sentence with what to do about it.
    pub fn token(&mut self, now: Instant) -> Result<Invitation, String> {
        if let Err(error) = &self.site.files {
            return Err(format!(
                "there is no noVNC to make a page of: {error}; install it (sudo apt install novnc) or name its directory (novnc \
                 under [screen]), then: bulkhead device restart VM console"
            ));
        }
        let backlog = Backlog::new(BACKLOG).map_err(|error| error.to_string())?;
        // It may listen already: that is no error.
        listen(&self.listener, backlog).map_err(|error| {
            format!("cannot listen at {}: {error}; choose another address (web under [screen])", self.address)
        })?;
        let token =
            self.site.access.invite(now).map_err(|error| format!("there is no randomness: {error}"))?;
        Ok(Invitation { token, address: self.address, https: self.site.tls.is_some() })
    }
}

/// Shared by the bodies of answers.
pub(crate) type Body = Arc<[u8]>;

#[cfg(test)]
mod tests;
