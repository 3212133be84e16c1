//! Keys that are typed by command: `bulkhead type` and `bulkhead key`, one after the other, at a pace that a guest follows.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::input::{Holder, Keyboard};
use crate::keysym::{self, Code, Meaning};

/// Time from one key to the next: 250 characters a second, which a terminal's line buffer and a busy guest keep up with.
const PACE: Duration = Duration::from_millis(4);
/// How long a combination is held, so that whoever looks at the state of keys sees it.
const HELD: Duration = Duration::from_millis(20);
/// Most commands that wait.
const MAX_JOBS: usize = 16;
/// Most keys that are pressed together: more than anybody has fingers, and few enough to find room at once.
const MAX_TOGETHER: usize = 16;
/// Most characters of one.
pub const MAX_TEXT: usize = 16 << 10;

/// Why something is not typed; nothing of it is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TypeError {
    /// No key has it.
    #[error("no key of a US keyboard has {0:?}")]
    Character(char),
    /// No key is called so.
    #[error("no key is called `{0}`; names are like a, f1, enter, ctrl-alt-del")]
    Name(String),
    /// A book.
    #[error("that are more than {MAX_TEXT} characters at once")]
    TooLong,
    /// A fist.
    #[error(
        "that are more than {MAX_TOGETHER} keys together; those that follow each other are words of their own"
    )]
    TooMany,
    /// Others wait.
    #[error("{MAX_JOBS} commands wait already")]
    Busy,
    /// Nobody would hear it.
    #[error("no driver in the guest listens to the keyboard")]
    Unheard,
}

#[derive(Debug)]
enum Stroke {
    Character(Meaning),
    Press(Vec<Code>),
    Release,
}

#[derive(Debug)]
struct Job {
    /// Who is told when it is done.
    ticket: u64,
    /// What is still to be typed. None: the keyboard has to take what was.
    strokes: VecDeque<Stroke>,
}

/// Types.
#[derive(Debug, Default)]
pub struct Typist {
    jobs: VecDeque<Job>,
    /// When the next stroke is due.
    next: Option<Instant>,
    tickets: u64,
}

impl Typist {
    /// Nothing to type.
    pub fn new() -> Typist {
        Typist::default()
    }

    /// Types this text after all else. The number under which [`Typist::done`] says that it is done.
    pub fn text(&mut self, text: &str) -> Result<u64, TypeError> {
        if text.chars().count() > MAX_TEXT {
            return Err(TypeError::TooLong);
        }
        let mut strokes = VecDeque::new();
        // A line ends once, however it is written.
        for character in text.replace("\r\n", "\n").chars() {
            match keysym::of_character(character) {
                Some(Meaning::Unicode(_)) | None => return Err(TypeError::Character(character)),
                Some(meaning) => strokes.push_back(Stroke::Character(meaning)),
            }
        }
        self.add(strokes)
    }

    /// Presses these keys together.
    pub fn keys(&mut self, name: &str) -> Result<u64, TypeError> {
        let codes = keysym::of_name(name).map_err(|part| TypeError::Name(part.to_owned()))?;
        if codes.len() > MAX_TOGETHER {
            return Err(TypeError::TooMany);
        }
        self.add([Stroke::Press(codes), Stroke::Release].into())
    }

    fn add(&mut self, strokes: VecDeque<Stroke>) -> Result<u64, TypeError> {
        if self.jobs.len() >= MAX_JOBS {
            return Err(TypeError::Busy);
        }
        self.tickets += 1;
        self.jobs.push_back(Job { ticket: self.tickets, strokes });
        Ok(self.tickets)
    }

    /// Whoever wanted this is gone: the rest of it is not typed, and nothing stays pressed for it.
    pub fn cancel(&mut self, ticket: u64, keyboard: &mut Keyboard) {
        if self.jobs.front().is_some_and(|job| job.ticket == ticket) {
            keyboard.release_all(Holder::TYPIST);
        }
        self.jobs.retain(|job| job.ticket != ticket);
    }

    /// When there is something to be done; `None`: nothing is typed, or the device has to take it first.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let job = self.jobs.front()?;
        (!job.strokes.is_empty()).then_some(self.next.unwrap_or(now))
    }

    /// The number of a command that is done: all of it has been handed to the keyboard. To be asked for again.
    pub fn done(&mut self, keyboard: &Keyboard) -> Option<u64> {
        let is_done = |job: &Job| job.strokes.is_empty() && keyboard.is_idle();
        self.jobs.front().is_some_and(is_done).then(|| self.jobs.pop_front())?.map(|job| job.ticket)
    }

    /// Goes on, if it is time.
    pub fn turn(&mut self, keyboard: &mut Keyboard, now: Instant) {
        let Some(job) = self.jobs.front_mut() else { return };
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        let Some(stroke) = job.strokes.pop_front() else { return };
        // While the device has no room nothing is lost: it is tried again.
        let mut pause = PACE;
        match stroke {
            Stroke::Character(meaning) => match keyboard.press_meaning(Holder::TYPIST, meaning) {
                Some(code) => keyboard.release(Holder::TYPIST, code),
                None => job.strokes.push_front(Stroke::Character(meaning)),
            },
            Stroke::Press(codes) => {
                // All or none: some of them may mean something else.
                if keyboard.has_room(codes.len()) {
                    for code in codes {
                        keyboard.press(Holder::TYPIST, code);
                    }
                    pause = HELD;
                } else {
                    job.strokes.push_front(Stroke::Press(codes));
                }
            }
            Stroke::Release => keyboard.release_all(Holder::TYPIST),
        }
        self.next = Some(now + pause);
    }
}

#[cfg(test)]
mod tests {
    use seat::keyboard::FromConsole;

    use super::*;

    /// Types all there is; the events, and the numbers of what was done.
    fn typed(typist: &mut Typist, keyboard: &mut Keyboard) -> (Vec<u16>, Vec<u64>) {
        let (mut now, mut events, mut done) = (Instant::now(), Vec::new(), Vec::new());
        while let Some(due) = typist.due(now) {
            now = now.max(due);
            typist.turn(keyboard, now);
            while let Some(FromConsole::Key(key)) = keyboard.front() {
                events.push(key.scancode | if key.up { 0x80 } else { 0 });
                assert_eq!(typist.done(keyboard), None, "the keyboard does not have all of it");
                keyboard.pop();
            }
            done.extend(typist.done(keyboard));
        }
        (events, done)
    }

    #[test]
    fn texts_and_keys_are_typed_in_order() {
        let (mut typist, mut keyboard) = (Typist::new(), Keyboard::new());
        assert_eq!(typist.text("aB\r\n"), Ok(1));
        assert_eq!(typist.keys("ctrl-c"), Ok(2));
        let (events, done) = typed(&mut typist, &mut keyboard);
        let text = [0x1e, 0x9e, 0x2a, 0x30, 0xaa, 0xb0, 0x1c, 0x9c];
        assert_eq!(events, [&text[..], &[0x1d, 0x2e, 0x9d, 0xae]].concat());
        assert_eq!(done, [1, 2]);
        assert_eq!(typist.due(Instant::now()), None);
    }

    #[test]
    fn what_cannot_be_typed_is_not_begun() {
        let mut typist = Typist::new();
        assert_eq!(typist.text("na\u{ef}ve"), Err(TypeError::Character('\u{ef}')));
        assert_eq!(typist.keys("hyperspace"), Err(TypeError::Name("hyperspace".to_owned())));
        assert_eq!(typist.text(&"x".repeat(MAX_TEXT + 1)), Err(TypeError::TooLong));
        assert_eq!(typist.keys(&["a"; MAX_TOGETHER + 1].join("-")), Err(TypeError::TooMany));
        for _ in 0..MAX_JOBS {
            typist.text("x").unwrap();
        }
        assert_eq!(typist.text("x"), Err(TypeError::Busy));
    }

    #[test]
    fn a_device_without_room_is_waited_for() {
        let (mut typist, mut keyboard) = (Typist::new(), Keyboard::new());
        let code = Code::of_number(0x10).unwrap();
        while keyboard.press(Holder::viewer(0), code) {}
        typist.text("a").unwrap();
        let mut now = Instant::now();
        for _ in 0..100 {
            now += PACE;
            typist.turn(&mut keyboard, now);
            assert_eq!(typist.done(&keyboard), None);
        }
        while !keyboard.is_idle() {
            keyboard.pop();
        }
        assert_eq!(typed(&mut typist, &mut keyboard), (vec![0x1e, 0x9e], vec![1]));
    }

    #[test]
    fn as_many_keys_as_there_may_be_are_pressed_together_or_not_at_all() {
        let (mut typist, mut keyboard) = (Typist::new(), Keyboard::new());
        let code = Code::of_number(0x10).unwrap();
        while keyboard.press(Holder::viewer(0), code) {}
        typist.keys("a-b-c-d-e-f-g-h-i-j-k-l-m-n-o-p").unwrap();
        let (mut now, mut events) = (Instant::now(), Vec::new());
        // The device takes one event at a time.
        while typist.done(&keyboard).is_none() {
            now += PACE;
            typist.turn(&mut keyboard, now);
            if let Some(FromConsole::Key(key)) = keyboard.front() {
                events.extend((key.scancode != 0x10).then_some(key.up));
            }
            keyboard.pop();
        }
        assert_eq!(events, [[false; MAX_TOGETHER], [true; MAX_TOGETHER]].concat());
    }

    #[test]
    fn for_who_is_gone_nothing_more_is_typed_and_nothing_stays_pressed() {
        let (mut typist, mut keyboard) = (Typist::new(), Keyboard::new());
        let (now, first) = (Instant::now(), typist.keys("ctrl-a").unwrap());
        let (second, third) = (typist.text("no").unwrap(), typist.text("b").unwrap());
        typist.turn(&mut keyboard, now);
        typist.cancel(second, &mut keyboard);
        typist.cancel(first, &mut keyboard);
        let (events, done) = typed(&mut typist, &mut keyboard);
        assert_eq!((events, done), (vec![0x1d, 0x1e, 0x9d, 0x9e, 0x30, 0xb0], vec![third]));
    }
}
