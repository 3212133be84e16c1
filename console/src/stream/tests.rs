//! Each layer between two ends of a socket pair, in small pieces and with a peer that does not read.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tungstenite::Message;

use super::*;

pub(crate) const CERTIFICATE: &[u8] = include_bytes!("testdata/cert.pem");
pub(crate) const KEY: &[u8] = include_bytes!("testdata/key.pem");

pub(crate) fn tls_config() -> TlsConfig {
    TlsConfig::new(CERTIFICATE, KEY).unwrap()
}

/// A client that trusts our certificate.
pub(crate) fn client(stream: impl Read + Write) -> rustls::StreamOwned<ClientConnection, impl Read + Write> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    rustls::StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

/// A server that sends back what it reads, until the end; as an edge-triggered loop would do it.
fn echo(mut stream: Stream) {
    let mut waiting: Vec<u8> = Vec::new();
    let mut buffer = [0; 1000];
    loop {
        let mut blocked = true;
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => {
                waiting.extend_from_slice(&buffer[..len]);
                blocked = false;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        while !waiting.is_empty() {
            let half = waiting.len().div_ceil(2);
            let pieces = [IoSlice::new(&waiting[..half]), IoSlice::new(&waiting[half..])];
            match stream.write_vectored(&pieces) {
                Ok(len) => drop(waiting.drain(..len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        match stream.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => panic!("{error}"),
            _ => {}
        }
        if blocked {
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }
}

fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (ours, theirs)
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    (ours, theirs)
}

/// Bytes in which a lost or repeated one shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn there_and_back(mut theirs: impl Read + Write, sizes: &[usize]) {
    for size in sizes {
        let sent = pattern(*size);
        let mut got = vec![0; *size];
        // In pieces: both directions are bounded.
        for (sent, got) in sent.chunks(20_000).zip(got.chunks_mut(20_000)) {
            theirs.write_all(sent).unwrap();
            theirs.flush().unwrap();
            theirs.read_exact(got).unwrap();
        }
        assert!(sent == got, "{size}");
    }
}

const SIZES: [usize; 5] = [1, 5, 999, 70_000, 500_000];

#[test]
fn plain_sockets_carry_bytes() {
    let (ours, theirs) = pair();
    let server = std::thread::spawn(move || echo(Stream::Unix(ours)));
    there_and_back(theirs, &SIZES);
    server.join().unwrap();
    let (ours, theirs) = tcp_pair();
    let server = std::thread::spawn(move || echo(Stream::Tcp(ours)));
    there_and_back(theirs, &SIZES);
    server.join().unwrap();
}

#[test]
fn tls_carries_bytes_whatever_was_read_before_it() {
    for early in [0, 1, 3, 200] {
        let (ours, theirs) = pair();
        let server = std::thread::spawn(move || {
            let mut ours = ours;
            // The server was greedy, and has some of the client's hello already.
            ours.set_nonblocking(false).unwrap();
            let mut unread = vec![0; early];
            ours.read_exact(&mut unread).unwrap();
            ours.set_nonblocking(true).unwrap();
            let stream = Stream::Unix(ours).into_tls(&tls_config(), &unread).unwrap();
            assert!(stream.is_private());
            echo(stream);
        });
        there_and_back(client(theirs), &SIZES);
        server.join().unwrap();
    }
}

#[test]
fn what_is_written_before_the_handshake_is_over_is_sent_after_it() {
    let (ours, theirs) = tcp_pair();
    let mut stream = Stream::Tcp(ours).into_tls(&tls_config(), &[]).unwrap();
    assert!(!stream.is_private());
    assert_eq!(stream.write(b"welcome").unwrap(), 7);
    assert_eq!(stream.flush().unwrap_err().kind(), ErrorKind::WouldBlock);
    let server = std::thread::spawn(move || echo(stream));
    let mut theirs = client(theirs);
    let mut welcome = [0; 7];
    theirs.read_exact(&mut welcome).unwrap();
    assert_eq!(&welcome, b"welcome");
    drop(theirs);
    server.join().unwrap();
}

#[test]
fn what_is_no_tls_is_the_end() {
    let (ours, mut theirs) = pair();
    let mut stream = Stream::Unix(ours).into_tls(&tls_config(), &[]).unwrap();
    theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(stream.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::InvalidData);
    let (ours, _theirs) = pair();
    assert!(Stream::Unix(ours).into_tls(&tls_config(), b"RFB 003.008\n").is_err());
}

#[test]
fn certificates_that_are_none_are_refused() {
    assert!(matches!(TlsConfig::new(b"", KEY), Err(TlsError::Certificate(_))));
    assert!(matches!(TlsConfig::new(CERTIFICATE, b""), Err(TlsError::Key(_))));
    assert!(matches!(TlsConfig::new(KEY, CERTIFICATE), Err(TlsError::Certificate(_) | TlsError::Key(_))));
}

fn websocket(channel: Channel) -> Stream {
    Stream::WebSocket(Box::new(WebSocket::new(channel, Vec::new())))
}

/// The client's messages as a stream of bytes.
struct Messages<S>(tungstenite::WebSocket<S>, Vec<u8>);

impl<S: Read + Write> Read for Messages<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.1.is_empty() {
            if let Message::Binary(bytes) = self.0.read().map_err(io::Error::other)? {
                self.1 = bytes.to_vec();
            }
        }
        let len = self.1.len().min(into.len());
        into[..len].copy_from_slice(&self.1[..len]);
        self.1.drain(..len);
        Ok(len)
    }
}

impl<S: Read + Write> Write for Messages<S> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.0.send(Message::Ping(Vec::new().into())).map_err(io::Error::other)?;
        self.0.send(Message::Binary(from.to_vec().into())).map_err(io::Error::other)?;
        Ok(from.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn messages<S: Read + Write>(stream: S) -> Messages<S> {
    let role = tungstenite::protocol::Role::Client;
    Messages(tungstenite::WebSocket::from_raw_socket(stream, role, None), Vec::new())
}

#[test]
fn websockets_carry_bytes_with_tls_and_without() {
    let (ours, theirs) = tcp_pair();
    let server = std::thread::spawn(move || echo(websocket(Channel::Plain(Socket::Tcp(ours)))));
    there_and_back(messages(theirs), &SIZES);
    server.join().ok();
    let (ours, theirs) = tcp_pair();
    let tls = Tls::new(Socket::Tcp(ours), &tls_config(), &[]).unwrap();
    let server = std::thread::spawn(move || echo(websocket(Channel::Tls(Box::new(tls)))));
    there_and_back(messages(client(theirs)), &SIZES);
    server.join().ok();
}

#[test]
fn a_peer_that_does_not_read_is_not_waited_for_and_nothing_grows() {
    let (ours, _theirs) = tcp_pair();
    let mut stream = websocket(Channel::Plain(Socket::Tcp(ours)));
    let block = pattern(100_000);
    let mut sent = 0;
    loop {
        match stream.write(&block) {
            Ok(len) => sent += len,
            Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(sent < 64 << 20, "it goes on for ever");
    }
    assert_eq!(stream.flush().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(stream.write(&block).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn websockets_refuse_what_is_no_stream() {
    for message in [Message::text("hello"), Message::Binary(pattern(LONGEST_MESSAGE + 1).into())] {
        let (ours, theirs) = pair();
        let mut stream = websocket(Channel::Plain(Socket::Unix(ours)));
        let sender = std::thread::spawn(move || {
            let mut theirs = messages(theirs);
            let _ = theirs.0.send(message);
            theirs
        });
        let error = loop {
            match stream.read(&mut [0; 100]) {
                Ok(_) => panic!("it was taken"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        drop(stream);
        drop(sender.join());
    }
    // Nothing but pings.
    let (ours, mut theirs) = pair();
    theirs.write_all(&[0x89, 0x80, 0, 0, 0, 0].repeat(MANY_PINGS)).unwrap();
    let mut stream = websocket(Channel::Plain(Socket::Unix(ours)));
    assert_eq!(stream.read(&mut [0; 100]).unwrap_err().kind(), ErrorKind::InvalidData);
    // A close is the end.
    let (ours, mut theirs) = pair();
    theirs.write_all(&[0x88, 0x80, 0, 0, 0, 0]).unwrap();
    assert_eq!(websocket(Channel::Plain(Socket::Unix(ours))).read(&mut [0; 100]).unwrap(), 0);
}

const MANY_PINGS: usize = 1000;
