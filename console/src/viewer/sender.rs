//! What goes out to one viewer: a bounded buffer of messages, and at most one update, whose pixels are made while it is sent.

use std::io::{self, IoSlice};

use zerocopy::IntoBytes;

use crate::damage::Rect;
use crate::encode::Encoder;
use crate::rfb::encodings::Encoding;
use crate::rfb::reply;
use crate::screen::Picture;
use crate::stream::Stream;

/// Bytes after which others get their turn.
const TURN: usize = 1 << 20;
/// Bytes of small pieces that go out together.
const BATCH: usize = 32 << 10;
/// What making a pixel costs, in bytes that could be sent meanwhile: two pieces of the largest size are a turn.
const COST: usize = 16;
/// Most rows in one system call; the kernel takes 1,024.
const ROWS: usize = 128;
/// What is sent in place of a picture that is gone.
static BLACK: [u8; 1 << 16] = [0; 1 << 16];

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Everything has been sent.
    All,
    /// The viewer has to read first.
    Blocked,
    /// There is more, but others wait.
    More,
}

/// The way out.
#[derive(Debug, Default)]
pub struct Sender {
    out: Vec<u8>,
    sent: usize,
    update: Option<Update>,
    /// The stream was full, and nobody has said that it is not any more.
    blocked: bool,
    /// The stream may keep bytes of ours.
    unflushed: bool,
}

/// An update that is under way. Its messages' head, with the number of the pieces, has been sent.
#[derive(Debug)]
struct Update {
    encoding: Encoding,
    /// Last first.
    pieces: Vec<Rect>,
    /// A piece that goes out as it is in the picture, and how many of its bytes have gone.
    verbatim: Option<(Rect, usize)>,
    /// The picture's size when the update began; with another one it is another picture.
    size: (u32, u32),
}

impl Sender {
    /// Nothing to send.
    pub fn new() -> Sender {
        Sender::default()
    }

    /// Where messages are put. What is in there is bounded by the caller: a few messages each time it is empty.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Whether everything has been given to the stream.
    pub fn is_idle(&self) -> bool {
        self.update.is_none() && self.sent == self.out.len()
    }

    /// Whether an update is under way: messages have to wait for its end.
    pub fn is_updating(&self) -> bool {
        self.update.is_some()
    }

    /// Whether there is something to be done now.
    pub fn is_ready(&self) -> bool {
        !self.blocked && (!self.is_idle() || self.unflushed)
    }

    /// The stream can take more.
    pub fn unblock(&mut self) {
        self.blocked = false;
    }

    /// An update's pieces, in this order, after its head, which is in [`Sender::out`].
    pub fn begin(&mut self, encoding: Encoding, mut pieces: Vec<Rect>, size: (u32, u32)) {
        debug_assert!(self.update.is_none(), "one update at a time");
        pieces.reverse();
        self.update = Some(Update { encoding, pieces, verbatim: None, size });
    }

    /// Sends what the stream takes.
    pub fn pump(
        &mut self,
        stream: &mut Stream,
        encoder: &mut Encoder,
        picture: &Picture,
    ) -> io::Result<Sent> {
        let result = self.try_pump(stream, encoder, picture);
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.blocked = true;
                Ok(Sent::Blocked)
            }
            other => other,
        }
    }

    fn try_pump(
        &mut self,
        stream: &mut Stream,
        encoder: &mut Encoder,
        picture: &Picture,
    ) -> io::Result<Sent> {
        let mut budget = TURN;
        loop {
            budget = budget.saturating_sub(self.make(encoder, picture));
            while self.sent < self.out.len() {
                let sent = retry(|| stream.write(&self.out[self.sent..]))?;
                self.unflushed = true;
                self.sent += sent;
                budget = budget.saturating_sub(sent);
            }
            self.out.clear();
            self.sent = 0;
            while let Some(update) = &mut self.update
                && update.verbatim.is_some()
                && budget > 0
            {
                let sent = retry(|| update.send_verbatim(stream, picture))?;
                self.unflushed = true;
                budget = budget.saturating_sub(sent);
            }
            if self.update.is_none() {
                break;
            }
            if budget == 0 {
                return Ok(Sent::More);
            }
        }
        if self.unflushed {
            stream.flush()?;
            self.unflushed = false;
        }
        Ok(Sent::All)
    }

    /// Makes the next bytes of an update: some small pieces, or the head of one that goes out as it is. What it has cost.
    fn make(&mut self, encoder: &mut Encoder, picture: &Picture) -> usize {
        let mut cost = 0;
        while self.out.len() < BATCH
            && cost < TURN
            && let Some(update) = &mut self.update
            && update.verbatim.is_none()
        {
            match update.pieces.pop() {
                Some(piece) if update.is_verbatim(piece, encoder) => {
                    reply::rectangle(piece, update.encoding, &mut self.out);
                    update.verbatim = Some((piece, 0));
                }
                Some(piece) => {
                    encoder.encode(piece, update.encoding, picture, &mut self.out);
                    cost += piece.area() as usize * COST;
                }
                None => self.update = None,
            }
        }
        cost
    }
}

impl Update {
    fn is_verbatim(&self, piece: Rect, encoder: &Encoder) -> bool {
        let inside = piece.x2 <= self.size.0 && piece.y2 <= self.size.1;
        inside && encoder.is_verbatim(self.encoding) && piece.area() as usize * 4 > BATCH
    }

    /// Sends some of a piece that goes out as it is.
    fn send_verbatim(&mut self, stream: &mut Stream, picture: &Picture) -> io::Result<usize> {
        let Some((rect, at)) = &mut self.verbatim else { return Ok(0) };
        let row = rect.width() as usize * 4;
        let all = row * rect.height() as usize;
        let y = rect.y1 + (*at / row) as u32;
        let sent = if picture.size() != self.size {
            stream.write(&BLACK[..(all - *at).min(BLACK.len())])?
        } else if rect.width() == picture.size().0 {
            // Rows lie one after the other.
            let bytes = &picture.rows(y, rect.y2).as_bytes()[*at % row..];
            stream.write(&bytes[..bytes.len().min(TURN)])?
        } else {
            let mut slices = [IoSlice::new(&[]); ROWS];
            let rows = (rect.y2 - y).min(ROWS as u32);
            for (slice, y) in slices.iter_mut().zip(y..y + rows) {
                *slice = IoSlice::new(picture.row(y, rect.x1, rect.x2).as_bytes());
            }
            let mut slices = &mut slices[..rows as usize];
            IoSlice::advance_slices(&mut slices, *at % row);
            stream.write_vectored(slices)?
        };
        *at += sent;
        if *at >= all {
            self.verbatim = None;
        }
        Ok(sent)
    }
}

/// A write that was interrupted is made again; one of nothing is the end of the stream.
fn retry(mut write: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            other => return other,
        }
    }
}
