//! Tells the agent's few marks from the job's output; both come through one port, so that their order is certain.
//!
//! A mark is `\0bulkhead-ready\n` or `\0bulkhead-done STATUS SIZE\n`; SIZE bytes of results follow the latter. A
//! job that prints marks of its own fools only itself.

const START: &[u8] = b"\0bulkhead-";

/// What the stream consists of.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Printed by the job.
    Text(Vec<u8>),
    /// The lab host waits for its order.
    Ready,
    /// The job has ended with this status, and that many bytes of results follow.
    Done {
        /// Exit status.
        status: i32,
        /// Bytes that follow.
        size: usize,
    },
    /// Some of the results.
    Results(Vec<u8>),
}

/// Takes the stream in whatever pieces it comes.
#[derive(Debug, Default)]
pub struct Splitter {
    held: Vec<u8>,
    results: Option<usize>,
}

impl Splitter {
    /// Adds bytes, returns what is certain by now.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.held.extend_from_slice(bytes);
        loop {
            if let Some(left) = &mut self.results {
                let take = self.held.len().min(*left);
                *left -= take;
                if take > 0 {
                    pieces.push(Piece::Results(self.held.drain(..take).collect()));
                }
                return pieces;
            }
            let certain = self.text_length();
            if certain > 0 {
                pieces.push(Piece::Text(self.held.drain(..certain).collect()));
            }
            let Some(end) = self.held.iter().position(|&byte| byte == b'\n') else { return pieces };
            if !self.held.starts_with(START) {
                return pieces;
            }
            let line: Vec<u8> = self.held.drain(..=end).collect();
            pieces.push(self.mark(line));
        }
    }

    /// How many of the held bytes cannot belong to a mark.
    fn text_length(&self) -> usize {
        let may_start = |at: &usize| {
            let rest = &self.held[*at..];
            rest.starts_with(START) || START.starts_with(rest)
        };
        (0..self.held.len()).find(may_start).unwrap_or(self.held.len())
    }

    fn mark(&mut self, line: Vec<u8>) -> Piece {
        let text = String::from_utf8_lossy(&line[START.len()..]).into_owned();
        let mut words = text.split_whitespace();
        match (words.next(), words.next().map(str::parse), words.next().map(str::parse)) {
            (Some("ready"), None, _) => Piece::Ready,
            (Some("done"), Some(Ok(status)), Some(Ok(size))) => {
                self.results = Some(size);
                Piece::Done { status, size }
            }
            _ => Piece::Text(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(pieces: Vec<Piece>) -> (Vec<u8>, Vec<Piece>) {
        let mut text = Vec::new();
        let mut others = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(bytes) => text.extend(bytes),
                other => others.push(other),
            }
        }
        (text, others)
    }

    #[test]
    fn marks_are_found_however_the_stream_is_cut() {
        let stream = b"\0bulkhead-ready\nhello \0 wor\0ld\n\0bulkhead-done 3 4\nabcd";
        for cut in 1..stream.len() {
            let mut splitter = Splitter::default();
            let mut pieces = splitter.feed(&stream[..cut]);
            pieces.extend(splitter.feed(&stream[cut..]));
            let (text, others) = whole(pieces);
            assert_eq!(text, b"hello \0 wor\0ld\n");
            assert_eq!(others[0], Piece::Ready);
            assert_eq!(others[1], Piece::Done { status: 3, size: 4 });
            let results: Vec<u8> = others[2..]
                .iter()
                .flat_map(|piece| match piece {
                    Piece::Results(bytes) => bytes.clone(),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(results, b"abcd");
        }
    }

    #[test]
    fn output_is_not_held_back() {
        let mut splitter = Splitter::default();
        assert_eq!(splitter.feed(b"login: "), [Piece::Text(b"login: ".to_vec())]);
    }
}
