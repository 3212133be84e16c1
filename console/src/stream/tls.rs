//! The server's side of TLS 1.2 and 1.3, over a socket that never waits.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

use super::{ONE_WRITE, Socket};

/// Rounds of reading that may bring nothing but TLS's own. A handshake takes a few; a peer that goes on and on with it wants
/// nothing but our time.
const MOST_ROUNDS: usize = 64;

/// Why there is no TLS. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate's file.
    #[error("the certificate is no PEM file with a certificate: {0}")]
    Certificate(String),
    /// The key's file.
    #[error("the private key is no PEM file with a key: {0}")]
    Key(String),
    /// The two do not go together, or are of a kind that nobody uses.
    #[error("the certificate and its key cannot be used: {0}")]
    Pair(rustls::Error),
}

/// A certificate and its key, ready for use.
#[derive(Clone, Debug)]
pub struct TlsConfig(Arc<ServerConfig>);

impl TlsConfig {
    /// Of two files in PEM form.
    pub fn new(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let certificates = CertificateDer::pem_slice_iter(certificates).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|error| TlsError::Certificate(error.to_string()))?;
        if certificates.is_empty() {
            return Err(TlsError::Certificate("there is none in it".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Key(error.to_string()))?;
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = builder
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key));
        Ok(Self(Arc::new(config.map_err(TlsError::Pair)?)))
    }
}

/// A connection.
#[derive(Debug)]
pub struct Tls {
    socket: Socket,
    session: ServerConnection,
    /// Something was written before the handshake was over, and waits for that.
    has_early: bool,
}

impl Tls {
    /// Begins with the client's first bytes, of which `unread` have been read already.
    pub fn new(socket: Socket, with: &TlsConfig, unread: &[u8]) -> io::Result<Self> {
        let mut session = ServerConnection::new(with.0.clone()).map_err(io::Error::other)?;
        session.set_buffer_limit(Some(ONE_WRITE));
        let mut tls = Self { socket, session, has_early: false };
        let mut unread = unread;
        while !unread.is_empty() {
            if tls.session.read_tls(&mut unread)? == 0 {
                break;
            }
            tls.process()?;
        }
        Ok(tls)
    }

    pub(super) fn is_unix(&self) -> bool {
        matches!(self.socket, Socket::Unix(_))
    }

    /// Takes what has come and is decrypted; 0: the end, an orderly one or not.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        for _ in 0..MOST_ROUNDS {
            match self.session.reader().read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The frames of what it carries have ends of their own, so that nothing can be cut off unnoticed.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                done => return done,
            }
            self.session.read_tls(&mut self.socket)?;
            self.process()?;
        }
        Err(io::Error::new(ErrorKind::InvalidData, "the peer sends nothing but TLS's own records"))
    }

    fn process(&mut self) -> io::Result<()> {
        let processed = self.session.process_new_packets();
        // An answer of the handshake's, or an alert that says what was wrong.
        let pushed = self.push();
        processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        match pushed {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            pushed => pushed,
        }
    }

    /// Encrypts some of it, and sends of that what the socket takes.
    pub fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if !self.session.is_handshaking() {
            self.push()?;
        }
        let taken = self.session.writer().write(&from[..from.len().min(ONE_WRITE)])?;
        if taken == 0 && !from.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.has_early |= self.session.is_handshaking();
        match self.push() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    /// Sends what is left.
    pub fn flush(&mut self) -> io::Result<()> {
        self.push()?;
        self.has_early &= self.session.is_handshaking();
        if self.has_early { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }

    fn push(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            if self.session.write_tls(&mut self.socket)? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

impl AsRawFd for Tls {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
